"""Keys that came and went since an index was built: in DRAM, and looked up besides it.

A table of open addressing: of each changed key its words and its id, -1 where it was deleted. Keys
are never taken out, so that who looks up needs no lock: an id is written last, in one step, and a
larger table takes the place of a full one as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import IdError
from bandana_kv.kernels.addresses import load, store
from bandana_kv.kernels.compile import brief, inlined, kernel, signed
from bandana_kv.keys.index import KeyIndex
from bandana_kv.keys.kinds import words_of_kind
from bandana_kv.keys.lookup import FEW

__all__ = ["Changes", "ChangedKeys"]

_FREE = -2
_FIRST_CAPACITY = 64
# Slots of a key, at least: so full, a search looks at two or three.
_SLOTS_PER_KEY = 2
_STIR = np.uint64(0x9E3779B97F4A7C15)
_STIR_SECOND = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]
Ids = NDArray[np.int64]


class Changes(NamedTuple):
    """What differs from an index: as it is kept on disk.

    Attributes
    ----------
    words : uint64 (n,) or (n, 2)
        Of each key that changed.
    ids : int64 (n,)
        Its id; -1: it was deleted.
    next_id : int
        The id of the next new key: none is given twice.
    sequence : int
        Of the last change.
    texts_bytes : int
        How much of the file of texts (:mod:`bandana_kv.keys.texts`) is good; 0: all, as it was
        loaded.
    """

    words: Words
    ids: Ids
    next_id: int
    sequence: int
    texts_bytes: int = 0


@inlined
def _slot_of(slots: np.ndarray, wide: bool, words: np.ndarray, i: int) -> int:
    """Return where a key is, or the free slot where it would be: the index of its id."""
    size = 3 if wide else 2
    mask = slots.size // size - 1
    first = words[2 * i] if wide else words[i]
    second = words[2 * i + 1] if wide else np.uint64(0)
    stirred = (first ^ (second * _STIR_SECOND)) * _STIR
    slot = signed(stirred >> _HALF) & mask
    while True:
        at = slot * size
        if load(slots, at + size - 1) == _FREE:
            return at + size - 1
        if slots[at] == signed(first) and (not wide or slots[at + 1] == signed(second)):
            return at + size - 1
        slot = (slot + 1) & mask


@inlined
def _look_up(slots: np.ndarray, wide: bool, words: np.ndarray, ids: np.ndarray) -> None:
    for i in range(ids.size):
        found = load(slots, _slot_of(slots, wide, words, i))
        if found != _FREE:
            ids[i] = found


@brief
def changed_few(slots: np.ndarray, wide: bool, words: np.ndarray, ids: np.ndarray) -> None:
    """Put the ids of those keys into `ids` (n,) that changed; keeps the GIL."""
    _look_up(slots, wide, words, ids)


@kernel
def changed_many(slots: np.ndarray, wide: bool, words: np.ndarray, ids: np.ndarray) -> None:
    """Do what :func:`changed_few` does, without the GIL."""
    _look_up(slots, wide, words, ids)


@kernel
def put_changes(slots: np.ndarray, wide: bool, words: np.ndarray, ids: np.ndarray) -> int:
    """Keep the ids of keys; return how many of them were not there. There is room for all."""
    size = 3 if wide else 2
    new = 0
    for i in range(ids.size):
        at = _slot_of(slots, wide, words, i)
        if slots[at] == _FREE:
            new += 1
            if wide:
                slots[at - size + 1] = signed(words[2 * i])
                slots[at - 1] = signed(words[2 * i + 1])
            else:
                slots[at - 1] = signed(words[i])
        store(slots, at, ids[i])  # last: who finds it finds the key as well
    return new


def _free_slots(capacity: int, width: int) -> NDArray[np.int64]:
    return np.full(capacity * (width + 1), _FREE, np.int64)


class ChangedKeys:
    """Which id each key has, of a table whose keys come and go; asked as a :class:`KeyIndex` is.

    Threads may ask while one changes it.

    Parameters
    ----------
    index
        What the table was loaded with.
    changes
        What has changed since then, as it was kept; None: nothing.

    Attributes
    ----------
    index : KeyIndex
        As given.
    kind : str
        As of the index.
    next_id : int
        The id of the next new key.
    sequence : int
        Of the last change.
    changing : Lock
        Held by who changes it, and while the process is copied.
    """

    def __init__(self, index: KeyIndex, changes: Changes | None = None) -> None:
        self.index = index
        self.kind = index.kind
        self._width = words_of_kind(index.kind)
        self._slots = _free_slots(_FIRST_CAPACITY, self._width)
        self._count = 0
        self._live = index.keys
        self.next_id = index.keys
        self.sequence = 0
        self.changing = threading.Lock()
        self._kept_sequence = 0
        self.texts_bytes = 0
        # Of text and bytes, keys that came since the changes were kept.
        self.new_texts: list[bytes] = []
        if changes is not None:
            self.apply(changes.words, changes.ids, changes.sequence)
            self.next_id = max(self.next_id, changes.next_id)
            self._kept_sequence = changes.sequence
            self.texts_bytes = changes.texts_bytes

    def __repr__(self) -> str:
        return f"<{self._live} keys, {self.kind}, of which {self._count} changed>"

    def __len__(self) -> int:
        return self._live

    @property
    def keys(self) -> int:
        """How many there are."""
        return self._live

    @property
    def changed(self) -> int:
        """How many differ from the index, deleted ones among them."""
        return self._count

    @property
    def unkept(self) -> bool:
        """Whether something changed since :meth:`changes` was last kept."""
        return self.sequence > self._kept_sequence

    def takes(self, words: Words) -> bool:
        """Return whether words are of keys of this kind."""
        return words.ndim == self._width

    def words_of(self, table: str, keys: Any) -> Words:
        """Return the words to look keys up by: :func:`bandana_kv.keys.checked_keys`."""
        return self.index.words_of(table, keys)

    def ids_of(self, words: Words) -> Ids:
        """Return the id of each key, int64 (n,), and -1 where there is none.

        Raises, and costs, as :meth:`KeyIndex.ids_of`; where keys have changed some 10 ns more.
        """
        ids = self.index.ids_of(words)
        if self._count:
            look_up = changed_few if ids.size <= FEW else changed_many
            look_up(self._slots, self._width == 2, np.ascontiguousarray(words).reshape(-1), ids)
        return ids

    def assigned(self, table: str, words: Words) -> tuple[Ids, int]:
        """Return the ids that keys have or would get, int64 (n,), and what comes after them.

        Raises
        ------
        IdError
            A key is the one that stands for those that no row has (of int64, one in 2^64).
        """
        ids = self.ids_of(words)
        absent = self.index.absent
        if absent is not None and (words == np.uint64(absent)).any():
            key = int(np.uint64(absent).astype(np.int64))
            raise IdError(
                f"table {table!r}: key {key} is none that a row can be added with here; "
                "load the table with it"
            )
        new = np.flatnonzero(ids < 0)
        ids[new] = self.next_id + np.arange(new.size)
        return ids, self.next_id + new.size

    def apply(self, words: Words, ids: Ids, sequence: int, texts: Sequence[bytes] = ()) -> None:
        """Let distinct keys have these ids, or -1, from now on; `texts` are the keys as given.

        Does nothing where `sequence` is not later than the last: changes come in their order, and
        some of them twice.
        """
        with self.changing:
            if sequence <= self.sequence:
                return
            before = self.ids_of(words)
            differ = before != ids
            words, given = np.ascontiguousarray(words[differ]), np.ascontiguousarray(ids[differ])
            self._make_room(given.size)
            self._count += put_changes(self._slots, self._width == 2, words.reshape(-1), given)
            self._live += int((given >= 0).sum()) - int((before[differ] >= 0).sum())
            self.next_id = max(self.next_id, int(ids.max(initial=-1)) + 1)
            self.new_texts += [texts[i] for i in np.flatnonzero(differ).tolist()] if texts else []
            self.sequence = sequence

    def _make_room(self, more: int) -> None:
        wanted = _SLOTS_PER_KEY * (self._count + more)
        capacity = self._slots.size // (self._width + 1)
        if wanted <= capacity:
            return
        slots = _free_slots(1 << (wanted - 1).bit_length(), self._width)
        words, ids = self._held()
        put_changes(slots, self._width == 2, words.reshape(-1), ids)
        self._slots = slots

    def _held(self) -> tuple[Words, Ids]:
        """Return what changed: words (n,) or (n, 2), and ids (n,)."""
        slots = self._slots.reshape(-1, self._width + 1)
        taken = slots[slots[:, -1] != _FREE]
        words = np.ascontiguousarray(taken[:, :-1]).view(np.uint64)
        ids: Ids = np.ascontiguousarray(taken[:, -1])
        return words if self._width == 2 else words.reshape(-1), ids

    def changes(self) -> Changes:
        """Return all that changed since the index was built."""
        with self.changing:
            return Changes(*self._held(), self.next_id, self.sequence, self.texts_bytes)

    def kept(self, kept: Changes, texts: int) -> None:
        """Note that changes are on disk, and the first so many of the new texts."""
        with self.changing:
            self._kept_sequence = max(self._kept_sequence, kept.sequence)
            self.texts_bytes = kept.texts_bytes
            del self.new_texts[:texts]

    def live_ids(self) -> Ids:
        """Return the ids that some key has, rising. Cost: a byte for each id, and a pass."""
        return self._live_ids(self.changes())

    def _live_ids(self, changes: Changes) -> Ids:
        live = np.zeros(changes.next_id, np.bool_)
        live[: self.index.keys] = True
        before = self.index.ids_of(changes.words)
        live[before[before >= 0]] = False
        live[changes.ids[changes.ids >= 0]] = True
        return np.flatnonzero(live)

    def keys_in_order(self) -> NDArray[np.int64] | Words:
        """Return all keys in the order of their ids, as :meth:`KeyIndex.keys_in_order` does.

        The ids are those of :meth:`live_ids`, if nothing changes meanwhile.
        """
        changes = self.changes()  # once: keys may come meanwhile
        words, ids = changes.words, changes.ids
        ordered = self.index.keys_in_order()
        if not ids.size:
            return ordered
        every = np.zeros((changes.next_id, *ordered.shape[1:]), np.uint64)
        every[: len(ordered)] = ordered.view(np.uint64)
        every[ids[ids >= 0]] = words[ids >= 0]
        live: Words = every[self._live_ids(changes)]
        return live.view(np.int64) if self.kind == "int64" else live
