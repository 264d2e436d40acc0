"""Every copy of blocks looked at, where an engine keeps several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.contract import OF_BLOCKS, Keys, Payloads
from bandana_kv.disk.blocks import corrupt_block
from bandana_kv.serve.reader import Errors, StoredTable, bad_payloads, error_named

__all__ = ["bad_copies"]


def bad_copies(table: StoredTable, blocks: NDArray[np.int64]) -> Errors:
    """Return the blocks of which some copy is not what was written, and what is wrong.

    Parameters
    ----------
    table
        Where the blocks lie.
    blocks
        int64 (n,), distinct; some hundreds to thousands at a time.

    Notes
    -----
    *Cost*: a read for each copy of each block, and its checksum.
    """
    if not blocks.size:
        return {}
    errors: Errors = {}
    keys = table.keys(blocks)
    order = np.argsort(keys)

    def check(place: str, of_copy: Keys, payloads: Payloads) -> None:
        those = blocks[order[np.searchsorted(keys[order], of_copy)]]
        for at, reason in bad_payloads(table, those, payloads).items():
            said = corrupt_block(table.name, int(those[at]), f"{reason}, at {place}")
            errors.setdefault(int(those[at]), said)

    try:
        table.adapter.read_every_copy(keys, check)
    except OF_BLOCKS as error:
        if blocks.size == 1:
            return {int(blocks[0]): error_named(table, int(blocks[0]), error)}
        half = blocks.size // 2  # which of them it is
        return bad_copies(table, blocks[:half]) | bad_copies(table, blocks[half:])
    return errors
