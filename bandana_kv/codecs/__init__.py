"""How rows lie in blocks and in the cache: as they are, or in fewer bytes.

Imports kernels and errors; knows of no table and no block.
"""

from bandana_kv.codecs.contract import Codec
from bandana_kv.codecs.registry import codec_named, codec_names

__all__ = ["Codec", "codec_named", "codec_names"]
