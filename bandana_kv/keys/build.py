"""Building an index: keys parted by rank, each part put in order, and written behind one another.

Nothing but a part is sorted at a time, within the processor's cache; the file is written from its
first byte to its last. Memory: 12 bytes a key of 64 bits, 20 of 128, beside the keys as given.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import readable
from bandana_kv.keys import parts
from bandana_kv.keys.file import HEADER_BYTES, Header, pack
from bandana_kv.keys.kinds import Kind, checked_kind, words_of_kind
from bandana_kv.keys.slots import EMPTY, HALVES, SPARE_SLOTS
from bandana_kv.system.durable import disk_full_named, replacing, sync_directory, sync_file

__all__ = ["MOST_KEYS", "build_index"]

# Of each slot but the spare ones; more makes keys lie further from home: at 7/8 by 3.5 slots.
_FILLED = 7 / 8
MOST_KEYS = int(_FILLED * (1 << 32)) - 1
"""Homes are told by 32 bits."""

_PART_KEYS = 1 << 15
_PART_BITS = (1, 14)
# Of good ranks not one in 1e30 lies as far.
_FURTHEST = 512
_TRIES = 8


class _Parted(NamedTuple):
    """Keys by the first bits of their ranks; part p is ``bounds[p]:bounds[p + 1]``.

    `ranks` uint64 (n,), `seconds` uint64 (n,) if a key is two words, else (0,), `ids` uint32 (n,).
    """

    width: int
    bits: int
    bounds: NDArray[np.int64]
    ranks: NDArray[np.uint64]
    seconds: NDArray[np.uint64]
    ids: NDArray[np.uint32]


class _CrowdedError(Exception):
    """Under this seed many keys lie at one place: another is tried."""


def build_index(path: str | os.PathLike[str], kind: str, words: NDArray[np.uint64]) -> None:
    """Write an index of keys, the first of which has id 0, and make it durable.

    Parameters
    ----------
    path
        What is there is replaced, by a rename: a crash leaves the old file or the new one.
    kind
        ``int64``, ``uint64``, ``str`` or ``bytes``.
    words
        uint64 (n,) for integers, (n, 2) for text and bytes, as
        :func:`bandana_kv.keys.checked_keys` makes them; mapped from a file, too.

    Raises
    ------
    InputError
        Two keys are the same: names it, or where the two are. Or `words` are not as above, or
        more than 3.7 billion.
    DiskFullError, DurabilityError, OSError
        It cannot be written; what was there is.

    Notes
    -----
    Cost: some 100 ns a key, on one core; memory for 12 or 20 bytes a key. The file has 13.7 or
    22.9 bytes a key.
    """
    path, named = Path(path), checked_kind(kind)
    given = _checked_words(named, words)
    with disk_full_named(path), replacing(path) as beside, open(beside, "wb") as file:
        header = _write_slots(file, named, given)
        file.seek(0)
        file.write(pack(header))
        file.flush()
        sync_file(file.fileno(), path)
    sync_directory(path.parent)


def _checked_words(kind: Kind, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    width = words_of_kind(kind)
    shape = "(n,)" if width == 1 else "(n, 2)"
    if words.dtype != np.uint64 or words.shape[1:] != (() if width == 1 else (2,)):
        raise InputError(
            f"words of {kind} keys are uint64 {shape}, not {words.dtype} {words.shape}"
        )
    if len(words) > MOST_KEYS:
        raise InputError(f"{len(words)} keys are more than an index has room for, {MOST_KEYS}")
    return readable(words).reshape(-1)


def _seeds() -> Iterator[int]:
    """Yield 0, so that equal keys make equal files, then what nobody who chose keys foresaw."""
    yield 0
    for _ in range(_TRIES):
        yield secrets.randbits(64)


def _write_slots(file: IO[bytes], kind: Kind, given: NDArray[np.uint64]) -> Header:
    """Write all but the header, which is returned."""
    for seed in _seeds():
        file.seek(HEADER_BYTES)
        file.truncate()
        try:
            return _try_seed(file, kind, given, seed)
        except _CrowdedError:
            continue
    raise InputError(f"no even spread was found for these keys in {_TRIES + 1} tries; try again")


def _try_seed(file: IO[bytes], kind: Kind, given: NDArray[np.uint64], seed: int) -> Header:
    width = words_of_kind(kind)
    count = given.size // width
    homes = int(count / _FILLED) + 1
    digest = xxhash.xxh3_64()
    parted = _parted(given, width, seed)
    next_slot, vacant = 0, -1
    for part in range(len(parted.bounds) - 1):
        slots, vacant_here = _part_slots(parted, part, homes, next_slot, kind, given)
        if vacant < 0:
            vacant = vacant_here
        next_slot += slots.size // HALVES[width]
        digest.update(slots.data)
        file.write(slots.data)
    spare = np.full(HALVES[width] * SPARE_SLOTS, EMPTY, np.uint32)
    digest.update(spare.data)
    file.write(spare.data)
    absent = 0 if width == 2 else parts.key_at_home(vacant, homes, np.uint64(seed))
    return Header(
        kind, count, next_slot + SPARE_SLOTS, homes, seed, int(absent), digest.intdigest()
    )


def _parted(given: NDArray[np.uint64], width: int, seed: int) -> _Parted:
    count = given.size // width
    least, most = _PART_BITS
    bits = min(most, max(least, (count // _PART_KEYS).bit_length()))
    bounds = np.zeros((1 << bits) + 1, np.int64)
    parts.count_parts(given, width, np.uint64(seed), bits, bounds)
    np.cumsum(bounds, out=bounds)
    ranks = np.empty(count, np.uint64)
    seconds = np.empty(count if width == 2 else 0, np.uint64)
    ids = np.empty(count, np.uint32)
    parts.scatter(given, width, np.uint64(seed), bits, bounds[:-1].copy(), ranks, seconds, ids)
    return _Parted(width, bits, bounds, ranks, seconds, ids)


def _part_slots(
    parted: _Parted,
    part: int,
    homes: int,
    first_slot: int,
    kind: Kind,
    given: NDArray[np.uint64],
) -> tuple[NDArray[np.uint32], int]:
    """Return the slots from the first up to where the next part may begin, and an empty one."""
    begin, end = parted.bounds[part : part + 2].tolist()
    wide = parted.width == 2
    ranks, ids = parted.ranks[begin:end], parted.ids[begin:end]
    seconds = parted.seconds[begin:end] if wide else parted.seconds
    low, high = (_home_of_part(parted.bits, each, homes) for each in (part, part + 1))
    order = np.empty(end - begin, np.int64)
    same = parts.put_in_order(ranks, seconds, homes, low, high, order)
    if same == parts.CROWDED:
        order = np.lexsort((seconds, ranks) if wide else (ranks,))
        same = parts.first_repeated(ranks, seconds, order)
        if same < 0:
            raise _CrowdedError
    if same >= 0:
        _refuse_repeated(kind, given, *sorted(ids[order[same : same + 2]].tolist()))
    halves = HALVES[parted.width]
    room = np.empty(halves * (max(high, first_slot) - first_slot + end - begin + 1), np.uint32)
    filled, furthest, vacant = parts.lay_out(
        ranks, seconds, ids, order, homes, first_slot, high, halves, room
    )
    if furthest > _FURTHEST:
        raise _CrowdedError
    return room[: halves * filled], vacant


def _home_of_part(bits: int, part: int, homes: int) -> int:
    """Return the least home of a part's keys; of the part behind the last, how many homes are."""
    return ((part << (32 - bits)) * homes) >> 32


def _refuse_repeated(kind: Kind, given: NDArray[np.uint64], first: int, second: int) -> None:
    if words_of_kind(kind) == 2:
        raise InputError(
            f"the keys at {first} and {second} are the same, and each row needs its own"
        )
    key = int(given.view(np.int64)[first]) if kind == "int64" else int(given[first])
    raise InputError(
        f"key {key} is there twice, at {first} and {second}, and each row needs its own"
    )
