"""Access logs: which ids each request looked up, read from files, recorded, and checked.

Imports kernels and metrics; knows no store and no placement: both give it, or take, plain ids.
"""

# Where users have it from.
from bandana_kv.logs.options import LogOptions
from bandana_kv.metrics.json_logs import JsonFormatter

__all__ = ["JsonFormatter", "LogOptions"]
