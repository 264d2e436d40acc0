"""Embedding tables served from NVM or SSD at a fraction of the DRAM.

Rows that are read together share a 4 KiB block; blocks are single values in a key-value
store; a small DRAM cache admits the rows that earn their place. Implements the method of
Bandana (Eisenman et al., MLSys 2019).
"""

from bandana_kv import rollout
from bandana_kv.access_log import AccessLog
from bandana_kv.errors import BandanaError
from bandana_kv.history import Version, rollback, versions
from bandana_kv.ledger import set_write_budget
from bandana_kv.loader import load
from bandana_kv.repairs import repair
from bandana_kv.store import EmbeddingStore, open
from bandana_kv.verification import verify

__all__ = [
    "AccessLog",
    "BandanaError",
    "EmbeddingStore",
    "Version",
    "__version__",
    "load",
    "open",
    "repair",
    "rollback",
    "rollout",
    "set_write_budget",
    "verify",
    "versions",
]

__version__ = "0.1.0"
