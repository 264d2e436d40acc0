"""What an opened adapter says of itself, and what it takes a bulk load with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bandana_kv.adapters.keys import Keys
from bandana_kv.adapters.payloads import Payloads
from bandana_kv.errors import AdapterError, BlockCorruptError, BlockMissingError

__all__ = ["OF_BLOCKS", "BulkWriter", "Capabilities"]

OF_BLOCKS = (AdapterError, BlockCorruptError, BlockMissingError, OSError)
"""What concerns single blocks: the others of the same read may be sound."""


@dataclass(frozen=True)
class Capabilities:
    """What one opened adapter can do.

    Attributes
    ----------
    persistent
        Blocks outlive the process.
    read_only_media
        Opens for reading on a file system mounted read-only.
    shared_by_processes
        Several processes may have the same path open for reading at once.
    survives_fork
        A child process may go on reading with the adapter that its parent opened.
    queue_depth
        How reads reach the device's queue depth: ``"threads"`` when each thread keeps
        one read in flight, ``"call"`` when one call keeps many, ``"none"`` when there is
        no device.
    remote
        Blocks lie on other machines, which may fail while others go on: no device of this one
        is measured or worn, one call tells which of its blocks did not come, and there may be
        several copies of a block.
    atomic_writes
        :meth:`Adapter.put_many` writes all or none.
    """

    persistent: bool
    read_only_media: bool
    shared_by_processes: bool
    survives_fork: bool
    queue_depth: str
    remote: bool = False
    atomic_writes: bool = True


class BulkWriter(Protocol):
    """What :meth:`Adapter._bulk_writer` returns: takes one load's chunks in key order.

    The arrays of a chunk are reused for the next one.
    """

    def write(self, keys: Keys, payloads: Payloads) -> None:
        """Take the next chunk; keys (n,) rise, payloads are (n, payload_bytes)."""

    def finish(self) -> None:
        """Make everything durable and visible."""

    def abort(self) -> None:
        """Remove what can be removed; must not raise."""
