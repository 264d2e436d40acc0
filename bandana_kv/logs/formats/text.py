"""Text logs: one request a line, ids separated by blanks or commas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.check import MOST_ID, shown
from bandana_kv.logs.formats.fields import read_whole
from bandana_kv.logs.formats.growable import Growing
from bandana_kv.logs.formats.pieces import Blocks
from bandana_kv.logs.formats.rows import line_end
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress

__all__ = ["read"]


@kernel
def _separates(byte: int, separator: int) -> bool:
    return byte == separator or byte in (32, 9, 10)  # a blank, a tab, the end of the line


@kernel
def _parse(
    block: np.ndarray,
    begin: int,
    separator: int,
    skip: bool,
    ids: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, int]:
    """Parse the complete lines of `block` from `begin` on.

    Returns where it stopped, a line's beginning, and where what is not an id begins (-1:
    nowhere). `counts` int64 (3,) becomes ids, requests, and bad lines that were skipped.
    """
    counts[:] = 0
    at = used = begin
    found = 0
    while at < block.size:
        if block[at] == 10:
            if found > counts[0]:
                sizes[counts[1]] = found - counts[0]
                counts[1] += 1
            counts[0] = found
            at += 1
            used = at
            continue
        if _separates(block[at], separator):
            at += 1
            continue
        token = at
        while at < block.size and not _separates(block[at], separator):
            at += 1
        if at == block.size:
            break  # the line that is not complete comes again with the next block
        value = read_whole(block, token, at, MOST_ID)
        if value >= 0:
            ids[found] = value
            found += 1
        elif not skip:
            return used, token
        else:
            end = line_end(block, at)
            if block[end - 1] != 10:
                break
            counts[2] += 1
            found = counts[0]
            at = used = end
    return used, -1


class _Lines:
    """Gathers the requests of a text file, block by block."""

    def __init__(self, path: Path, separator: str, bad: BadRows) -> None:
        self._path = path
        self._separator = separator
        self._bad = bad
        self._lines = 0
        self.ids = Growing(np.int32)
        self.sizes = Growing(np.int64)

    def parse(self, block: NDArray[np.uint8]) -> int:
        ids = np.empty(block.size // 2 + 1, np.int32)
        sizes = np.empty(block.size // 2 + 1, np.int64)
        counts = np.zeros(3, np.int64)
        used, wrong = 0, 0
        while wrong >= 0:
            skip = bool(self._bad.first)  # the first is told of, those after it are counted
            used, wrong = _parse(block, used, ord(self._separator), skip, ids, sizes, counts)
            self.ids.append(ids[: counts[0]])
            self.sizes.append(sizes[: counts[1]])
            self._bad.count += int(counts[2])
            if wrong >= 0:
                self._bad.add(self._message(block, wrong), rows=0)  # the next call counts it
        self._lines += int(np.count_nonzero(block[:used] == 10))
        return used

    def _message(self, block: NDArray[np.uint8], at: int) -> str:
        line = self._lines + 1 + int(np.count_nonzero(block[:at] == 10))
        end = at
        while end < block.size and not _separates(block[end], ord(self._separator)):
            end += 1
        what = "commas" if self._separator == "," else repr(self._separator)
        return (
            f"{self._path}: line {line}: {shown(block[at:end])} is not an id; a line holds the "
            f"ids of one request, whole numbers from 0 to {MOST_ID}, separated by blanks or {what}"
        )


def read(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read a text file, one request a line; blank lines are skipped.

    Raises
    ------
    InputError
        Something that is not an id, with its line number; or the separator is not one character.
    """
    separator = options.separator or ","
    if len(separator) > 1 or not separator.isascii() or separator.isalnum() or separator == ".":
        raise InputError(f"{path}: {separator!r} cannot separate ids; take ',', ';' or '|'")
    lines = _Lines(path, separator, bad)
    with Blocks(path, progress) as blocks:
        blocks.feed(lines.parse)
    sizes = lines.sizes.done()
    offsets = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets, lines.ids.done()
