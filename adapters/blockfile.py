"""Blocks at fixed offsets in plain files, read directly and with many reads in flight.

The form in which the method's authors ran it, and the yardstick for the other engines: a read
costs what the device takes for it, and nothing else.

A directory holds files ``space-N.blocks``, each for the spaces from N on that fit into a GiB
together or for one that is larger, since every file takes a descriptor of each process that reads
it; and an index, which says which slot of which file a block lies in. A bulk load writes its blocks
one after the other. Blocks written by :meth:`~bandana_kv.adapters.contract.Adapter.put_many` go to
slots never used before, also those that replace others, and one rename of the index makes them
visible: a crash leaves all or none, and nobody who reads meanwhile sees half a block. The room of
replaced blocks comes back when a space of their file is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from bandana_kv.adapters.blockfile_files import (
    View,
    locked,
    open_view,
    remove_litter,
)
from bandana_kv.adapters.blockfile_index import (
    INDEX_FILE,
    write_index,
)
from bandana_kv.adapters.blockfile_io import ABSENT, BlockReads
from bandana_kv.adapters.blockfile_queue import load_functions, new_queue
from bandana_kv.adapters.blockfile_slots import Slots, Writer
from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    Queue,
    Standing,
    describe_key,
    space_bounds,
)
from bandana_kv.adapters.gate import Gate
from bandana_kv.adapters.keys import any_of
from bandana_kv.errors import AdapterError, BandanaError, StoreNotFoundError
from bandana_kv.system.durable import sync_directory

__all__ = ["BlockfileAdapter"]


class BlockfileAdapter(Adapter):
    """Blocks in files of their own, outside of any engine and of the page cache.

    One process at a time writes. An adapter opened read-only sees the blocks there were when
    it was opened, and any number of processes may have one. Open with
    :func:`bandana_kv.adapters.create` or :func:`~bandana_kv.adapters.open_existing`.

    Notes
    -----
    In memory it holds 32 bytes for each run of consecutive blocks: next to nothing for tables
    that were loaded whole. Reading releases the GIL. Where io_uring is to be had, one call
    keeps 128 reads in flight; two calls at once fill the gaps between them.
    """

    name: ClassVar[str] = "blockfile"
    engine_errors = (OSError,)

    def __init__(self, path: Path, view: View, *, pages: int, lock: int | None) -> None:
        self._path = path
        self._lock_file = lock
        self._block_bytes = self.payload_of(pages)
        self._slots = Slots(path, view, self._block_bytes)
        self._reads = BlockReads(self._block_bytes)
        load_functions()
        gate = Gate(after_fork_in_child=self._after_fork_in_child)
        super().__init__(str(path), pages=pages, read_only=lock is None, gate=gate)

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty store at `path` and open it for writing."""
        del size_hint_bytes  # files grow as they are written
        cls._make_directory(path)
        try:
            write_index(path, pages * PAGE_BYTES, {})
            sync_directory(path)
        except OSError as error:
            raise cls._cannot_open(str(path), error) from error
        return cls.open_existing(path, read_only=False, pages=pages)

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the store at `path`; StoreNotFoundError if there is none."""
        path = path.resolve()
        if not (path / INDEX_FILE).is_file():
            raise StoreNotFoundError(f"no {cls.name} store at {path}")
        with contextlib.ExitStack() as undo:
            try:
                lock = None if read_only else locked(path)
                if lock is not None:
                    undo.callback(os.close, lock)
                view = open_view(path, pages * PAGE_BYTES, read_only=read_only)
                if not read_only:
                    remove_litter(path, view, pages * PAGE_BYTES)
                adapter = cls(path, view, pages=pages, lock=lock)
            except (OSError, AdapterError) as error:
                raise cls._cannot_open(str(path), error) from error
            undo.pop_all()
        return adapter

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""
        return Capabilities(
            persistent=True,
            read_only_media=True,
            shared_by_processes=True,
            survives_fork=True,
            queue_depth="call" if self._reads.many_at_once else "threads",
        )

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache; some file systems do not have that."""
        return all(file.direct for file in self._slots.files.values())

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        return pages * PAGE_BYTES

    @property
    def _view(self) -> View:
        return self._slots.view

    def _after_fork_in_child(self, _: bool) -> None:
        self._reads.after_fork_in_child()
        self._unlock()  # the parent's, and to be let go of with it

    def _unlock(self) -> None:
        handle, self._lock_file = self._lock_file, None
        if handle is not None:
            os.close(handle)

    # -- reading --------------------------------------------------------------------------

    def _read(self, keys: Keys, out: Payloads) -> None:
        view = self._view  # files stay open for as long as this refers to them
        if out.shape[1] != self._block_bytes:
            raise self._wrong_length(int(keys[0]), self._block_bytes)
        at, found = self._reads.read(view, keys, out)
        if at >= 0:
            raise self.why_unread(int(keys[at]), found)

    def standing(self) -> Standing | None:
        """Return what compiled code can read with, as :meth:`Adapter.standing` says."""
        view = self._slots.view  # before looking: closing leaves one where all are missing
        if self._closed or not self._reads.many_at_once:  # else many threads, a read each
            return None
        return self._reads.standing(view)

    @classmethod
    def queue(cls) -> Queue | None:
        """Return a queue of reads by io_uring, as :meth:`Adapter.queue` says."""
        return new_queue()

    def why_unread(self, key: int, found: int) -> BandanaError:
        """Return the error for a block of which so much was found."""
        if found == ABSENT:
            return self._missing(key)
        if found < 0:
            return self._translate(OSError(-found, os.strerror(-found), describe_key(key)))
        return self._wrong_length(key, found)

    def _any_stored(self, keys: Keys) -> int | None:
        return any_of(keys, self._first_key)

    def _space_is_empty(self, space: int) -> bool:
        return self._first_key(*space_bounds(space)) is None

    def _first_key(self, first: int, last: int) -> int | None:
        """Return the lowest key stored within first..last, or None."""
        runs = self._view.runs
        at = int(np.searchsorted(runs[:, 0], np.uint64(first), side="right"))
        if at and first - int(runs[at - 1, 0]) < int(runs[at - 1, 1]):
            return first
        if at < len(runs) and int(runs[at, 0]) <= last:
            return int(runs[at, 0])
        return None

    # -- writing --------------------------------------------------------------------------

    def bulk_load(self, batches: Iterable[tuple[Keys, Payloads]], count: int) -> None:
        """Write new blocks in key order, as :meth:`Adapter.bulk_load` says.

        What cannot fit is refused before anything is written, and a load that fails or dies
        leaves nothing behind.
        """
        self._check_writable()
        self._call(lambda: self._refuse_too_many(count))
        super().bulk_load(batches, count)

    def _refuse_too_many(self, count: int) -> None:
        found = os.statvfs(self._path)
        free_bytes = found.f_bavail * found.f_frsize
        if count * self._block_bytes > free_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: {count} blocks take "
                f"{count * self._block_bytes} bytes, and {free_bytes} are free",
            )

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        writer = Writer(self._slots, self._check_process, replaces=True)
        try:
            writer.write(keys, payloads)
            writer.finish()
        except BaseException:
            writer.abort()
            raise

    def _bulk_writer(self, count: int) -> BulkWriter:
        del count
        return Writer(self._slots, self._check_process, replaces=False)

    def _check_process(self) -> None:
        if self._lock_file is None:
            raise AdapterError(
                f"{self.name} at {self._where} was opened to write before a fork; "
                "open it again in the child"
            )

    def _delete_space(self, space: int) -> None:
        self._check_process()
        self._slots.delete(space)

    def _close(self) -> None:
        self._slots.close()
        self._reads.close()
        self._unlock()
