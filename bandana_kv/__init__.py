"""Embedding tables served from NVM or SSD at a fraction of the DRAM.

Rows that are read together share a 4 KiB block; blocks are single values in a key-value
store; a small DRAM cache admits the rows that earn their place. Implements the method of
Bandana (Eisenman et al., MLSys 2019).
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from bandana_kv.version import __version__

__all__ = [
    "AccessLog",
    "BandanaError",
    "EmbeddingStore",
    "Rows",
    "Version",
    "__version__",
    "export",
    "load",
    "open",
    "repair",
    "rollback",
    "rollout",
    "set_write_budget",
    "verify",
    "versions",
]


# Where the names above are made. They are imported when first asked for: what all of them need
# takes a second and a half, and a command line that only prints its help has no use for it.
_HOMES = {
    "AccessLog": "bandana_kv.logs.access_log",
    "BandanaError": "bandana_kv.errors",
    "EmbeddingStore": "bandana_kv.serve.store",
    "Rows": "bandana_kv.rows.given",
    "Version": "bandana_kv.care.versions",
    "export": "bandana_kv.migration.export",
    "load": "bandana_kv.load.loader",
    "open": "bandana_kv.serve.opening",
    "repair": "bandana_kv.care.repair",
    "rollback": "bandana_kv.care.versions",
    "set_write_budget": "bandana_kv.disk.budget",
    "verify": "bandana_kv.care.verification",
    "versions": "bandana_kv.care.versions",
}

# Documented modules, by the names that users import them under.
_PUBLIC = {
    f"{__name__}.blocks": "bandana_kv.disk.blocks",
    f"{__name__}.drift": "bandana_kv.care.drift",
    f"{__name__}.exporter": "bandana_kv.metrics.exporter",
    f"{__name__}.performance": "bandana_kv.assess.performance",
    f"{__name__}.policy": "bandana_kv.cache.policy",
    f"{__name__}.recording": "bandana_kv.logs.recording",
}


class _PublicNames(MetaPathFinder, Loader):
    """Imports a room's module under the name that users know, so that rooms may be rebuilt."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Return how to import one of :data:`_PUBLIC`; None for all other names."""
        return ModuleSpec(fullname, self) if fullname in _PUBLIC else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the room's own module in the place of `module`."""
        sys.modules[module.__name__] = import_module(_PUBLIC[module.__name__])


# Before the others: a directory that an older version left behind must not be taken instead.
sys.meta_path.insert(0, _PublicNames())


class _Package(ModuleType):
    """Keeps `load` the function: the import system puts each room here by its own name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if TYPE_CHECKING:
    from bandana_kv import rollout as rollout
    from bandana_kv import torch as torch
    from bandana_kv.assess import performance as performance
    from bandana_kv.cache import policy as policy
    from bandana_kv.care import drift as drift
    from bandana_kv.care.repair import repair
    from bandana_kv.care.verification import verify
    from bandana_kv.care.versions import Version, rollback, versions
    from bandana_kv.disk import blocks as blocks
    from bandana_kv.disk.budget import set_write_budget
    from bandana_kv.errors import BandanaError
    from bandana_kv.load.loader import load
    from bandana_kv.logs import recording as recording
    from bandana_kv.logs.access_log import AccessLog
    from bandana_kv.metrics import exporter as exporter
    from bandana_kv.migration.export import export
    from bandana_kv.rows.given import Rows
    from bandana_kv.serve.opening import open
    from bandana_kv.serve.store import EmbeddingStore
else:

    def __getattr__(name: str) -> object:
        """Import one of :data:`_HOMES` or :data:`_PUBLIC` when it is asked for."""
        if name in _HOMES:
            found = globals()[name] = getattr(import_module(_HOMES[name]), name)
            return found
        if name in ("rollout", "torch") or f"{__name__}.{name}" in _PUBLIC:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
