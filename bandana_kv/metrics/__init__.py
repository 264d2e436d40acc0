"""What parts of a running system say of themselves, and how that gets out.

Imports nothing of the house but errors and system, so that every room can count; knows no store.
"""

from bandana_kv.metrics.data import (
    UPPER_SECONDS,
    Buckets,
    Labelled,
    Measured,
    Metric,
    metric,
)

__all__ = ["UPPER_SECONDS", "Buckets", "Labelled", "Measured", "Metric", "metric"]
