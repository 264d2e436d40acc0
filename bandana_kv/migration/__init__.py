"""Tables moved out of an engine with a row per key, resumably, every row compared at the end.

Imports load, the read path, and rows by key of adapters; changes the old engine never.
"""

from bandana_kv.migration.run import Migrated, migrate

__all__ = ["Migrated", "migrate"]
