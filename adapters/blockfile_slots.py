"""Slots of a block file store: given out, written, shown all at once, and given back."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bandana_kv.adapters.blockfile_files import BLOCKS_FILE, BlockFile, View
from bandana_kv.adapters.blockfile_index import (
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
from bandana_kv.adapters.blockfile_io import aligned_bytes
from bandana_kv.adapters.contract import MAX_BLOCK, Keys, Payloads, block_keys, describe_key
from bandana_kv.errors import AdapterError
from bandana_kv.system.durable import sync_directory

__all__ = ["Slots", "Writer"]

_BLOCK_BITS = MAX_BLOCK.bit_length()
_WRITE_BYTES = 4 << 20
# A file takes no further space from here on; unless there are so many.
_FILE_BYTES, _MOST_FILES = 1 << 30, 64


@dataclass(frozen=True, eq=False)
class Place:
    """Where a space lies from its first block until it is deleted: known by its identity."""

    number: int
    file: BlockFile


@dataclass(frozen=True)
class Written:
    """Slots of one file that a writer has reserved, and what is in them."""

    space: int
    place: Place
    slot: int
    count: int
    runs: Runs


class Slots:
    """Which slots of which file each space has; safe to use from many threads.

    Parameters
    ----------
    path
        The store's directory.
    view
        What can be read now.
    block_bytes
        Bytes of a slot.

    Attributes
    ----------
    view : View
        What can be read; replaced as a whole.
    files : dict of int to BlockFile
        All files, those of unfinished loads included.
    """

    def __init__(self, path: Path, view: View, block_bytes: int) -> None:
        self._path = path
        self.view = view
        self.block_bytes = block_bytes
        self.files = dict(view.files)
        # Where spaces lie, those of unfinished loads included.
        self._places = {
            space: Place(held.file, view.files[held.file]) for space, held in view.spaces.items()
        }
        # Held by who changes any of them.
        self._changing = threading.Lock()

    def reserve(self, space: int, count: int) -> tuple[Place, int]:
        """Return where a space lies, made if need be, and the first of `count` slots there."""
        with self._changing:
            place = self._places.get(space)
            if place is None:
                place = self._places[space] = self._place_for(space)
            slot, place.file.end_slot = place.file.end_slot, place.file.end_slot + count
            place.file.reserved.add((slot, count))
            return place, slot

    def _place_for(self, space: int) -> Place:
        """Return a file with room for a new space: the last one, or a new one."""
        if self.files:
            last = next(reversed(self.files))
            size_bytes = self.files[last].end_slot * self.block_bytes
            if size_bytes < _FILE_BYTES or len(self.files) >= _MOST_FILES:
                return Place(last, self.files[last])
        number = next(each for each in itertools.count(space) if each not in self.files)
        new = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        file = self.files[number] = BlockFile(self._path / BLOCKS_FILE.format(number), new)
        return Place(number, file)

    def release(self, part: Written) -> None:
        """Give slots back that were reserved in vain, if others were not reserved after."""
        with self._changing:
            number, file = part.place.number, part.place.file
            file.reserved.discard((part.slot, part.count))
            shown = ends_of(self.view.spaces).get(number, 0)
            if part.slot < shown or file.end_slot != part.slot + part.count:
                return
            if self.files.get(number) is not file:
                return
            file.end_slot = part.slot
            if part.slot == 0:
                del self.files[number]
                self._places = {s: p for s, p in self._places.items() if p.file is not file}
                file.path.unlink()
            else:
                os.ftruncate(file.handle, part.slot * self.block_bytes)

    def publish(self, written: list[Written], *, replaces: bool) -> None:
        """Make written slots visible, all at once."""
        with self._changing:
            parts: dict[int, list[Runs]] = {}
            for part in written:
                if self._places.get(part.space) is not part.place:
                    raise AdapterError(f"space {part.space} was deleted while it was written")
                parts.setdefault(part.space, []).append(part.runs)
            spaces = dict(self.view.spaces)
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
            if len(spaces) > len(self.view.spaces):
                sync_directory(self._path)  # new files, before the index that names them
            self._show(spaces)
            for part in written:
                part.place.file.reserved.discard((part.slot, part.count))

    def _show(self, spaces: dict[int, Space]) -> None:
        # Also where the space with the last slots goes: slots are given out once.
        ends = ends_of(self.view.spaces, spaces)
        spaces = {space: replace(held, end_slot=ends[held.file]) for space, held in spaces.items()}
        write_index(self._path, self.block_bytes, spaces)
        files = {held.file: self.files[held.file] for held in spaces.values()}
        self.view = View(spaces, files, self.block_bytes)
        sync_directory(self._path)

    def delete(self, space: int) -> None:
        """Take a space away, and give its room back."""
        with self._changing:
            place = self._places.get(space)
            if place is None:
                return
            spaces = {other: held for other, held in self.view.spaces.items() if other != space}
            if len(spaces) != len(self.view.spaces):
                self._show(spaces)
            del self._places[space]
            if place.file not in {other.file for other in self._places.values()}:
                del self.files[place.number]
                place.file.path.unlink()
                sync_directory(self._path)
            elif place.number in ends_of(spaces):
                self._give_back(place)

    def _give_back(self, place: Place) -> None:
        """Give back the room of slots that nothing lies in any more."""
        held = [each for each in self.view.spaces.values() if each.file == place.number]
        written = [(0, count, slot) for slot, count in place.file.reserved]
        taken = [*(each.runs for each in held), np.array(written, np.int64).reshape(-1, 3)]
        for slot, count in free_slots(np.concatenate(taken), held[0].end_slot):
            place.file.give_back(slot * self.block_bytes, count * self.block_bytes)

    def close(self) -> None:
        """Let go of all files."""
        self.view = View({}, {}, self.block_bytes)
        self.files, self._places = {}, {}


class Writer:
    """Writes blocks behind those there are, and shows them when all are safe."""

    def __init__(self, slots: Slots, check_process: Callable[[], None], *, replaces: bool) -> None:
        check_process()
        self._slots = slots
        self._check_process = check_process
        self._replaces = replaces
        self._written: list[Written] = []
        self._scratch = aligned_bytes(_WRITE_BYTES)

    def write(self, keys: Keys, payloads: Payloads) -> None:
        """Write a chunk behind what its spaces have."""
        self._check_process()
        spaces = (keys >> np.uint64(_BLOCK_BITS)).astype(np.int64)
        blocks = (keys & np.uint64(MAX_BLOCK)).astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(spaces)) + 1).tolist(), len(keys)]
        for low, high in pairwise(edges):
            space, count = int(spaces[low]), high - low
            place, slot = self._slots.reserve(space, count)
            runs = runs_of(blocks[low:high], slot)
            self._written.append(Written(space, place, slot, count, runs))
            place.file.write(slot * self._slots.block_bytes, payloads[low:high], self._scratch)

    def finish(self) -> None:
        """Make everything durable, then visible."""
        for file in {part.place.file for part in self._written}:
            file.sync()
        self._slots.publish(self._written, replaces=self._replaces)

    def abort(self) -> None:
        """Give the slots back."""
        with contextlib.suppress(OSError):
            for part in reversed(self._written):
                self._slots.release(part)
