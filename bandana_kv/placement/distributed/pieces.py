"""Arrays that shares write down and a task reads back, those of all shares one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.distributed.shares import keep, mapped

__all__ = ["offsets_of", "read_pieces", "write_pieces"]


def write_pieces(directory: str, name: str, share: int, arrays: Sequence[NDArray[Any]]) -> int:
    """Write the arrays of a share down; return their bytes."""
    for number, array in enumerate(arrays):
        keep(_path(directory, name, share, number), array)
    return sum(array.nbytes for array in arrays)


def read_pieces(
    directory: str, name: str, shares: int, dtypes: Sequence[type[np.generic]]
) -> list[NDArray[Any]]:
    """Return the arrays, which are of these types."""
    found = []
    for number, dtype in enumerate(dtypes):
        pieces = [mapped(_path(directory, name, share, number), dtype) for share in range(shares)]
        found.append(np.concatenate(pieces))
    return found


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where runs of these lengths begin, one after the other, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _path(directory: str, name: str, share: int, number: int) -> Path:
    return Path(directory) / f"{name}.share-{share:05}.{number}"
