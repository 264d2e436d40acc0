"""Which row a key is: an exact index from keys to ids, mapped from a file, and changes to it.

Keys are 64-bit integers, text or bytes; ids are row numbers from 0. Imports kernels, system and
errors; knows no store and no table but by the name that an error calls it.
"""

from bandana_kv.keys.arguments import checked_keys, key_kind
from bandana_kv.keys.build import build_index
from bandana_kv.keys.changes import ChangedKeys
from bandana_kv.keys.index import KeyIndex

__all__ = ["ChangedKeys", "KeyIndex", "build_index", "checked_keys", "key_kind"]
