"""The cache's own kernels run without data: what a log would cost."""

from bandana_kv.simulate.bound import lower_bound
from bandana_kv.simulate.miniature import Curve, curve
from bandana_kv.simulate.replay import Replayed, replay

__all__ = ["Curve", "Replayed", "curve", "lower_bound", "replay"]
