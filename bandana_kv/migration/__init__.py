"""Tables moved out of an engine with a row per key, resumably, every row compared at the end."""

from bandana_kv.migration.moving import Migrated, migrate

__all__ = ["Migrated", "migrate"]
