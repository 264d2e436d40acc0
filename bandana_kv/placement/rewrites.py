"""Which blocks are worth rewriting: those that requests would need less if all were placed anew.

A request that reads n of some blocks would read f if their rows lay as in another placement,
the *target*; letting the rows of these blocks change places among themselves saves it n - f. A
request gains only where several of its blocks take part, so blocks are not ranked one by one:
beginning with all, those that contribute least to what the others save are left out, again and
again, until as many remain as may be written (the greedy peeling of Charikar, APPROX 2000, that
finds dense subgraphs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["blocks_worth_writing"]

# So many of the blocks that are left are left out in one round.
_SHARE_A_ROUND = 0.07
_NOBODY, _SEVERAL, _COUNTED = -1, -2, -3


@kernel
def _contributions(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    block_of_id: NDArray[np.int32],
    target_of_id: NDArray[np.int32],
    taking_part: NDArray[np.bool_],
    only: NDArray[np.int32],
    last_request: NDArray[np.int64],
    saved: NDArray[np.int64],
) -> None:
    """Fill in what each block that takes part adds to what all of them save.

    For a request that reads it, a block adds its own read, less the reads of target blocks
    that no other of the request's blocks would need. `only`, by target block, is all _NOBODY
    before and after.
    """
    saved[:] = 0
    last_request[:] = -1
    for request in range(offsets.size - 1):
        begin, end = offsets[request], offsets[request + 1]
        for at in range(begin, end):
            block, target = block_of_id[ids[at]], target_of_id[ids[at]]
            if taking_part[block]:
                if only[target] == _NOBODY:
                    only[target] = block
                elif only[target] != block:
                    only[target] = _SEVERAL
        for at in range(begin, end):
            block, target = block_of_id[ids[at]], target_of_id[ids[at]]
            if taking_part[block]:
                if last_request[block] != request:
                    last_request[block] = request
                    saved[block] += 1
                if only[target] == block:
                    saved[block] -= 1
                    only[target] = _COUNTED
        for at in range(begin, end):
            only[target_of_id[ids[at]]] = _NOBODY


def blocks_worth_writing(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    block_of_id: NDArray[np.int32],
    target_of_id: NDArray[np.int32],
    most: int,
) -> NDArray[np.int64]:
    """Return at most `most` blocks whose rows should change places, rising.

    Parameters
    ----------
    offsets, ids
        A validated log, read-only: of what is read from blocks.
    block_of_id, target_of_id
        int32 (rows,): the block of each id as it is, and in a placement from scratch.
    most
        From 0 up. Blocks that no request reads are never among them.

    Notes
    -----
    Cost: a pass over the lookups a round, some thirty rounds for a tenth of the blocks.
    """
    blocks = int(block_of_id.max()) + 1 if block_of_id.size else 0
    taking_part = np.zeros(blocks, np.bool_)
    taking_part[block_of_id[ids]] = True
    left = int(np.count_nonzero(taking_part))
    only = np.full(blocks, _NOBODY, np.int32)
    last_request = np.empty(blocks, np.int64)
    saved = np.empty(blocks, np.int64)
    while left > most:
        _contributions(
            offsets, ids, block_of_id, target_of_id, taking_part, only, last_request, saved
        )
        saved[~taking_part] = np.iinfo(np.int64).max
        next_left = max(most, int(left * (1 - _SHARE_A_ROUND)))
        taking_part[np.argsort(saved, kind="stable")[: left - next_left]] = False
        left = next_left
    return np.flatnonzero(taking_part)
