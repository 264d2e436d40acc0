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
import itertools
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from bandana_kv.adapters.blockfile_files import (
    BLOCKS_FILE,
    BlockFile,
    View,
    locked,
    open_view,
    remove_litter,
)
from bandana_kv.adapters.blockfile_index import (
    INDEX_FILE,
    NOTHING,
    Runs,
    Space,
    ends_of,
    free_slots,
    overlaid,
    overlap,
    runs_of,
    write_index,
)
from bandana_kv.adapters.blockfile_io import ABSENT, BlockReads, aligned_bytes
from bandana_kv.adapters.contract import (
    MAX_BLOCK,
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    Reading,
    block_keys,
    describe_key,
)
from bandana_kv.adapters.gate import Gate
from bandana_kv.errors import AdapterError, BandanaError, StoreNotFoundError
from bandana_kv.system.durable import sync_directory

__all__ = ["BlockfileAdapter"]

_BLOCK_BITS = MAX_BLOCK.bit_length()
_WRITE_BYTES = 4 << 20
# A file takes no further space from here on; unless there are so many.
_FILE_BYTES, _MOST_FILES = 1 << 30, 64


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
        self._view = view
        self._lock_file = lock
        self._block_bytes = self.payload_of(pages)
        self._reads = BlockReads(self._block_bytes)
        # All files, and where spaces lie, those of unfinished loads included; and who changes
        # them or the view.
        self._files = dict(view.files)
        self._places = {
            space: _Place(held.file, view.files[held.file]) for space, held in view.spaces.items()
        }
        self._changing = threading.Lock()
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
            queue_depth="call" if self._reads.by_ring else "threads",
        )

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache; some file systems do not have that."""
        return all(file.direct for file in self._files.values())

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        return pages * PAGE_BYTES

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

    def reading(self, count: int) -> Reading | None:
        """Return what compiled code needs, as :meth:`Adapter.reading` says."""
        view = self._view  # before looking: closing leaves an empty one, where all are missing
        if self._closed:
            raise AdapterError(f"{self.name} at {self._where} is closed")
        return self._reads.reading(view, count)

    def end_reading(self, reading: Reading) -> None:
        """Take back what :meth:`reading` gave."""
        self._reads.end_reading(reading)

    def why_unread(self, key: int, found: int) -> BandanaError:
        """Return the error for a block of which so much was found."""
        if found == ABSENT:
            return self._missing(key)
        if found < 0:
            return self._translate(OSError(-found, os.strerror(-found), describe_key(key)))
        return self._wrong_length(key, found)

    def _first_key(self, first: int, last: int) -> int | None:
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
        writer = _Writer(self, replaces=True)
        try:
            writer.write(keys, payloads)
            writer.finish()
        except BaseException:
            writer.abort()
            raise

    def _bulk_writer(self) -> BulkWriter:
        return _Writer(self, replaces=False)

    def _check_process(self) -> None:
        if self._lock_file is None:
            raise AdapterError(
                f"{self.name} at {self._where} was opened to write before a fork; "
                "open it again in the child"
            )

    def _reserve(self, space: int, count: int) -> tuple[_Place, int]:
        """Return where a space lies, made if need be, and the first of `count` slots there."""
        with self._changing:
            place = self._places.get(space)
            if place is None:
                place = self._places[space] = self._place_for(space)
            slot, place.file.end_slot = place.file.end_slot, place.file.end_slot + count
            place.file.reserved.add((slot, count))
            return place, slot

    def _place_for(self, space: int) -> _Place:
        """Return a file with room for a new space: the last one, or a new one."""
        if self._files:
            last = next(reversed(self._files))
            size_bytes = self._files[last].end_slot * self._block_bytes
            if size_bytes < _FILE_BYTES or len(self._files) >= _MOST_FILES:
                return _Place(last, self._files[last])
        number = next(each for each in itertools.count(space) if each not in self._files)
        new = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        file = self._files[number] = BlockFile(self._path / BLOCKS_FILE.format(number), new)
        return _Place(number, file)

    def _release(self, part: _Written) -> None:
        """Give slots back that were reserved in vain, if others were not reserved after."""
        with self._changing:
            number, file = part.place.number, part.place.file
            file.reserved.discard((part.slot, part.count))
            shown = ends_of(self._view.spaces).get(number, 0)
            if part.slot < shown or file.end_slot != part.slot + part.count:
                return
            if self._files.get(number) is not file:
                return
            file.end_slot = part.slot
            if part.slot == 0:
                del self._files[number]
                self._places = {s: p for s, p in self._places.items() if p.file is not file}
                file.path.unlink()
            else:
                os.ftruncate(file.handle, part.slot * self._block_bytes)

    def _publish(self, written: list[_Written], *, replaces: bool) -> None:
        """Make written slots visible, all at once."""
        with self._changing:
            parts: dict[int, list[Runs]] = {}
            for part in written:
                if self._places.get(part.space) is not part.place:
                    raise AdapterError(f"space {part.space} was deleted while it was written")
                parts.setdefault(part.space, []).append(part.runs)
            spaces = dict(self._view.spaces)
            for space, runs in parts.items():
                new = np.concatenate(runs)
                old = spaces[space].runs if space in spaces else NOTHING
                block = None if replaces else overlap(old, new)
                if block is not None:
                    key = int(block_keys(space, block))
                    raise AdapterError(f"{describe_key(key)} appeared during the load")
                end_slot = int((new[:, 1] + new[:, 2]).max())
                number = self._places[space].number
                spaces[space] = Space(number, end_slot, overlaid(old, new))
            if len(spaces) > len(self._view.spaces):
                sync_directory(self._path)  # new files, before the index that names them
            self._show(spaces)
            for part in written:
                part.place.file.reserved.discard((part.slot, part.count))

    def _show(self, spaces: dict[int, Space]) -> None:
        # Also where the space with the last slots goes: slots are given out once.
        ends = ends_of(self._view.spaces, spaces)
        spaces = {space: replace(held, end_slot=ends[held.file]) for space, held in spaces.items()}
        write_index(self._path, self._block_bytes, spaces)
        files = {held.file: self._files[held.file] for held in spaces.values()}
        self._view = View(spaces, files, self._block_bytes)
        sync_directory(self._path)

    def _delete_range(self, first: int, last: int) -> None:
        del last  # the contract deletes whole spaces
        space = first >> _BLOCK_BITS
        self._check_process()
        with self._changing:
            place = self._places.get(space)
            if place is None:
                return
            spaces = {other: held for other, held in self._view.spaces.items() if other != space}
            if len(spaces) != len(self._view.spaces):
                self._show(spaces)
            del self._places[space]
            if place.file not in {other.file for other in self._places.values()}:
                del self._files[place.number]
                place.file.path.unlink()
                sync_directory(self._path)
            elif place.number in ends_of(spaces):
                self._give_back(place)

    def _give_back(self, place: _Place) -> None:
        """Give back the room of slots that nothing lies in any more."""
        held = [each for each in self._view.spaces.values() if each.file == place.number]
        written = [(0, count, slot) for slot, count in place.file.reserved]
        taken = [*(each.runs for each in held), np.array(written, np.int64).reshape(-1, 3)]
        for slot, count in free_slots(np.concatenate(taken), held[0].end_slot):
            place.file.give_back(slot * self._block_bytes, count * self._block_bytes)

    def _close(self) -> None:
        self._view = View({}, {}, self._block_bytes)
        self._files, self._places = {}, {}
        self._reads.close()
        self._unlock()


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a space lies from its first block until it is deleted: known by its identity."""

    number: int
    file: BlockFile


@dataclass(frozen=True)
class _Written:
    """Slots of one file that a writer has reserved, and what is in them."""

    space: int
    place: _Place
    slot: int
    count: int
    runs: Runs


class _Writer:
    """Writes blocks behind those there are, and shows them when all are safe."""

    def __init__(self, adapter: BlockfileAdapter, *, replaces: bool) -> None:
        adapter._check_process()
        self._adapter = adapter
        self._replaces = replaces
        self._written: list[_Written] = []
        self._scratch = aligned_bytes(_WRITE_BYTES)

    def write(self, keys: Keys, payloads: Payloads) -> None:
        self._adapter._check_process()
        spaces = (keys >> np.uint64(_BLOCK_BITS)).astype(np.int64)
        blocks = (keys & np.uint64(MAX_BLOCK)).astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(spaces)) + 1).tolist(), len(keys)]
        for low, high in pairwise(edges):
            space, count = int(spaces[low]), high - low
            place, slot = self._adapter._reserve(space, count)
            runs = runs_of(blocks[low:high], slot)
            self._written.append(_Written(space, place, slot, count, runs))
            place.file.write(slot * self._adapter._block_bytes, payloads[low:high], self._scratch)

    def finish(self) -> None:
        for file in {part.place.file for part in self._written}:
            file.sync()
        self._adapter._publish(self._written, replaces=self._replaces)

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            for part in reversed(self._written):
                self._adapter._release(part)
