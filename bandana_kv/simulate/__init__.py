"""The cache's own kernels run without data: what a log would cost."""

from bandana_kv.simulate.replay import Replayed, replay

__all__ = ["Replayed", "replay"]
