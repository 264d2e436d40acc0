"""Which blocks a block file holds, and in which slots: runs, and the file they are kept in.

The file, all numbers little-endian and 64 bits wide: magic ``BKVI`` and format version, bytes
of a block, number of spaces, number of runs; for each space its number, that of its file, the end
of the file's slots, its runs; for each run its first block, blocks, first slot; XXH3 of all that.
In format 1, which is still read, each space has a file of its own number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from bandana_kv.adapters.contract import MAX_BLOCK, MAX_SPACE
from bandana_kv.errors import AdapterError

__all__ = [
    "INDEX_FILE",
    "NEW_INDEX_FILE",
    "NOTHING",
    "Runs",
    "Space",
    "ends_of",
    "free_slots",
    "overlaid",
    "overlap",
    "read_index",
    "runs_of",
    "write_index",
]

INDEX_FILE = "index"
NEW_INDEX_FILE = "index.new"

_MAGIC = int.from_bytes(b"BKVI", "little")
_FORMAT_VERSION = 2
_WORD = np.dtype("<u8")
_HEADER_WORDS = 4
_MOST_BLOCK_BYTES = 1 << 24

Runs = npt.NDArray[np.int64]
"""(n, 3), rising and apart: first block, blocks, first slot."""


@dataclass(frozen=True)
class Space:
    """What of a file belongs to one space.

    Attributes
    ----------
    file : int
        The file's number; other spaces may share it.
    end_slot : int
        Slots of the file from here on were never given out.
    runs : int64 array (n, 3)
        First block, blocks, first slot.
    """

    file: int
    end_slot: int
    runs: Runs


NOTHING: Runs = np.empty((0, 3), np.int64)


def ends_of(*indexes: dict[int, Space]) -> dict[int, int]:
    """Return for each file that these spaces lie in where its slots end, by all of them."""
    ends: dict[int, int] = {}
    for spaces in indexes:
        for held in spaces.values():
            ends[held.file] = max(ends.get(held.file, 0), held.end_slot)
    return ends


def free_slots(taken: Runs, end_slot: int) -> list[tuple[int, int]]:
    """Return the slots below `end_slot` in which no run of `taken` lies: firsts and counts."""
    taken = taken[np.argsort(taken[:, 2])]
    firsts = np.append(0, taken[:, 2] + taken[:, 1])
    counts = np.append(taken[:, 2], end_slot) - firsts
    pairs = zip(firsts.tolist(), counts.tolist(), strict=True)
    return [(first, count) for first, count in pairs if count > 0]


def runs_of(blocks: npt.NDArray[np.int64], slot: int) -> Runs:
    """Return the runs of rising `blocks` (n,) that lie in slots from `slot` on."""
    starts = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
    counts = np.diff(starts, append=blocks.size)
    return np.column_stack([blocks[starts], counts, slot + starts])


def overlaid(old: Runs, new: Runs) -> Runs:
    """Return the runs of `old`, less the blocks that `new` has, and those of `new`."""
    if not len(new):
        return old
    new = _joined(new)
    cuts = np.concatenate([new[:, 0], new[:, 0] + new[:, 1]])
    starts = np.unique(np.concatenate([old[:, 0], cuts]))
    ends = np.append(starts[1:], np.iinfo(np.int64).max)
    inside, source = _within(old, starts)
    kept = inside & ~_within(new, starts)[0]
    starts, ends, source = starts[kept], ends[kept], old[source[kept]]
    counts = np.minimum(ends, source[:, 0] + source[:, 1]) - starts
    rest = np.column_stack([starts, counts, source[:, 2] + starts - source[:, 0]])
    return _joined(np.concatenate([rest, new]))


def _within(
    runs: Runs, blocks: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return for each of `blocks` whether a run has it, and which."""
    at = np.searchsorted(runs[:, 0], blocks, side="right") - 1
    if not len(runs):
        return np.zeros(blocks.size, np.bool_), at
    return (at >= 0) & (blocks < runs[at, 0] + runs[at, 1]), at


def _joined(runs: Runs) -> Runs:
    """Return `runs` in order, those that continue one another made one."""
    runs = runs[np.argsort(runs[:, 0])]
    goes_on = (runs[1:, [0, 2]] == (runs[:-1, [0, 2]] + runs[:-1, 1:2])).all(axis=1)
    starts = np.flatnonzero(~np.concatenate([[False], goes_on]))
    joined = runs[starts]
    joined[:, 1] = np.add.reduceat(runs[:, 1], starts)
    return joined


def overlap(old: Runs, new: Runs) -> int | None:
    """Return the lowest block that both have, or None."""
    blocks = np.concatenate([old[:, 0], new[:, 0]])
    common = blocks[_within(old, blocks)[0] & _within(new, blocks)[0]]
    return int(common.min()) if common.size else None


def _checksum(raw: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little")


def write_index(directory: Path, block_bytes: int, spaces: dict[int, Space]) -> None:
    """Replace the index of a directory at once; on an error the old one stays.

    The name is durable once the directory is synced.
    """
    numbers = [
        (space, held.file, held.end_slot, len(held.runs)) for space, held in sorted(spaces.items())
    ]
    runs = [spaces[space].runs for space, *_ in numbers]
    header = [_MAGIC | _FORMAT_VERSION << 32, block_bytes, len(numbers), sum(map(len, runs))]
    words = np.concatenate([header, np.array(numbers, np.int64).reshape(-1), *map(np.ravel, runs)])
    raw = words.astype(_WORD).tobytes()
    new = directory / NEW_INDEX_FILE
    try:
        with open(new, "wb") as file:
            file.write(raw + _checksum(raw))
            file.flush()
            os.fsync(file.fileno())
        new.replace(directory / INDEX_FILE)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def read_index(handle: int) -> tuple[int, dict[int, Space]]:
    """Return the bytes of a block, and the spaces, of an index open at its beginning.

    Raises
    ------
    AdapterError
        Damaged, cut short, or of a newer format.
    """
    size = os.fstat(handle).st_size
    header = np.frombuffer(os.pread(handle, 8 * _HEADER_WORDS, 0), np.uint8)
    if header.size < 8 * _HEADER_WORDS or int(header.view("<u4")[0]) != _MAGIC:
        raise AdapterError(f"{INDEX_FILE} is not an index of blocks")
    version = int(header.view("<u4")[1])
    if version > _FORMAT_VERSION:
        raise AdapterError(
            f"{INDEX_FILE} has format {version}, newer than this release reads "
            f"({_FORMAT_VERSION}); upgrade bandana_kv"
        )
    _, block_bytes, space_count, run_count = header.view(_WORD).tolist()
    columns = 3 if version == 1 else 4
    if size != 8 * (_HEADER_WORDS + columns * space_count + 3 * run_count + 1):
        raise AdapterError(f"{INDEX_FILE} is cut short or damaged: it is {size} bytes long")
    with open(handle, "rb", closefd=False) as file:
        raw = file.read()
    if raw[-8:] != _checksum(raw[:-8]):
        raise AdapterError(f"{INDEX_FILE} is damaged: its checksum does not match")
    words = np.frombuffer(raw, _WORD, offset=8 * _HEADER_WORDS).astype(np.int64)
    numbers = words[: columns * space_count].reshape(-1, columns)
    runs = words[columns * space_count : -1].reshape(-1, 3)
    if version == 1:
        numbers = numbers[:, [0, 0, 1, 2]]
    if not _is_consistent(block_bytes, numbers, runs):
        raise AdapterError(f"{INDEX_FILE} is damaged: its numbers contradict each other")
    parts = np.split(runs, np.cumsum(numbers[:, 3])[:-1]) if space_count else []
    spaces = {
        space: Space(file, end, part)
        for (space, file, end, _), part in zip(numbers.tolist(), parts, strict=True)
    }
    return block_bytes, spaces


def _is_consistent(block_bytes: int, numbers: Runs, runs: Runs) -> bool:
    """Return whether spaces rise, and their runs rise apart and end before their slots do."""
    spaces, files, ends, counts = numbers.T
    if (
        not 0 < block_bytes <= _MOST_BLOCK_BYTES
        or (counts < 0).any()
        or (counts > len(runs)).any()
        or int(counts.sum()) != len(runs)
        or (np.diff(spaces, prepend=-1) <= 0).any()
        or (spaces > MAX_SPACE).any()
        or (files < 0).any()
        or (files > MAX_SPACE).any()
        or (ends < 0).any()
        or (ends > MAX_BLOCK).any()
    ):
        return False
    firsts, lengths, slots = runs.T
    # Bounded one by one first, so that the sums below cannot overflow.
    if (runs < 0).any() or (lengths < 1).any() or (runs > MAX_BLOCK + 1).any():
        return False
    of_space = np.repeat(np.arange(len(numbers)), counts)
    same = of_space[1:] == of_space[:-1]
    apart = firsts[1:] >= firsts[:-1] + lengths[:-1]
    return bool(
        (firsts + lengths <= MAX_BLOCK + 1).all()
        and (slots + lengths <= ends[of_space]).all()
        and (apart | ~same).all()
    )
