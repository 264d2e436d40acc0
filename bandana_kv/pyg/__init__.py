"""Node features of PyG's graphs, out of a store: what its loaders ask in place of a tensor.

May import all rooms but `tools` and `testing`; nothing imports it, and torch and torch_geometric
are imported when its class is asked for, so that the library goes without them.
"""

from typing import TYPE_CHECKING

__all__ = ["FeatureStore"]

if TYPE_CHECKING:
    from bandana_kv.pyg.feature_store import FeatureStore
else:

    def __getattr__(name: str) -> object:
        """Import the class when it is asked for."""
        if name != "FeatureStore":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from bandana_kv.pyg.feature_store import FeatureStore

        return FeatureStore
