"""The cache's own kernels run without data: what a log would cost.

Imports cache, and logs and placements as plain data; never the methods that place, nor a store.
"""

from bandana_kv.simulate.bound import lower_bound
from bandana_kv.simulate.estimate import Estimate, estimate
from bandana_kv.simulate.miniature import Curve, curve
from bandana_kv.simulate.replay import Replayed, replay
from bandana_kv.simulate.requests import PerRequest, per_request

__all__ = [
    "Curve",
    "Estimate",
    "PerRequest",
    "Replayed",
    "curve",
    "estimate",
    "lower_bound",
    "per_request",
    "replay",
]
