"""The arrays that lie beside a table's blocks: where its rows are, and how hot."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import write_array
from bandana_kv.disk.placement import Placement, layout_of
from bandana_kv.kernels.bitpack import pack

__all__ = ["write_arrays"]


def write_arrays(
    root: Path, files: int, space: int, placement: Placement, heat: NDArray[np.uint8]
) -> int:
    """Write what lies beside a table's blocks; return how many rows have a copy."""
    file = partial(manifest.table_file, root, files, space)
    write_array(file("positions"), "positions", pack(placement.position_of_id))
    write_array(file("heat"), "heat", heat)
    original_of, by_position = layout_of(placement, heat)[2:]
    if original_of.size:
        write_array(file("original-of"), "original-of", original_of)
        write_array(file("by-position"), "by-position", by_position)
    return original_of.size
