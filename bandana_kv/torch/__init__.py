"""Tables of a store as modules of PyTorch: in a model's layers, its loaders and its compiler.

Imports serve, load and what they stand on, and the package torch: nothing else in the library does,
but for readers of checkpoints. No room imports this one.
"""

from bandana_kv.errors import MissingExtraError

try:
    import torch  # noqa: F401 - said here once, for all modules of the room
except ImportError as error:
    raise MissingExtraError(
        "bandana_kv.torch needs torch: pip install 'bandana-kv[torch]'"
    ) from error

from bandana_kv.torch.collection import EmbeddingBagCollection, KeyedTensor
from bandana_kv.torch.modules import Embedding, EmbeddingBag
from bandana_kv.torch.prefetch import Prefetcher
from bandana_kv.torch.stores import register
from bandana_kv.torch.swap import externalize, internalize

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "KeyedTensor",
    "Prefetcher",
    "externalize",
    "internalize",
    "register",
]
