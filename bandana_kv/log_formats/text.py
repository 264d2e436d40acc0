"""Text logs: one request a line, ids separated by blanks or commas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.errors import InputError
from bandana_kv.log_formats.blocks import Blocks
from bandana_kv.log_formats.check import MOST_ID, shown
from bandana_kv.log_formats.growing import Growing
from bandana_kv.progress import Progress

__all__ = ["read"]

_SEPARATORS = b" \t,\r\n"


@kernel
def _parse(
    block: np.ndarray, most_id: int, ids: np.ndarray, sizes: np.ndarray
) -> tuple[int, int, int, int]:
    """Parse the complete lines of `block`.

    Returns the bytes used, the ids and the requests in them, and where what is not an id
    begins (-1: nowhere).
    """
    found = requests = used = 0
    before = 0  # ids found before this line
    value = 0
    token = -1  # where the id begins that is being read
    for at in range(block.size):
        byte = block[at]
        if 48 <= byte <= 57:  # 0 to 9
            if token < 0:
                token = at
                value = 0
            value = value * 10 + (byte - 48)
            if value > most_id:
                return used, before, requests, token
        elif byte in (32, 9, 44, 13, 10):  # blank, tab, comma, carriage return, newline
            if token >= 0:
                ids[found] = value
                found += 1
                token = -1
            if byte == 10:
                if found > before:
                    sizes[requests] = found - before
                    requests += 1
                before = found
                used = at + 1
        else:
            return used, before, requests, token if token >= 0 else at
    # the line that is not complete comes again with the next block
    return used, before, requests, -1


class _Lines:
    """Gathers the requests of a text file, block by block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self.ids = Growing(np.int32)
        self.sizes = Growing(np.int64)

    def parse(self, block: NDArray[np.uint8]) -> int:
        ids = np.empty(block.size // 2 + 1, np.int32)
        sizes = np.empty(block.size // 2 + 1, np.int64)
        used, found, requests, bad = _parse(block, MOST_ID, ids, sizes)
        if bad >= 0 and (block[bad:] == 10).any():  # else it may be cut; it comes again
            self._refuse(block, bad)
        self.ids.append(ids[:found])
        self.sizes.append(sizes[:requests])
        self._lines += int(np.count_nonzero(block[:used] == 10))
        return used

    def _refuse(self, block: NDArray[np.uint8], at: int) -> None:
        line = self._lines + 1 + int(np.count_nonzero(block[:at] == 10))
        end = at
        while end < block.size and block[end] not in _SEPARATORS:
            end += 1
        raise InputError(
            f"{self._path}: line {line}: {shown(block[at:end])} is not an id; a line holds the "
            f"ids of one request, whole numbers from 0 to {MOST_ID}, separated by blanks or commas"
        )


def read(
    path: Path, columns: Mapping[str, str] | None, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read a text file, one request a line; blank lines are skipped.

    Raises
    ------
    InputError
        Something that is not an id, with its line number; columns were named.
    """
    if columns:
        raise InputError(f"{path}: a text log has no columns to name")
    lines = _Lines(path)
    with Blocks(path, progress) as blocks:
        blocks.feed(lines.parse)
    sizes = lines.sizes.done()
    offsets = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets, lines.ids.done()
