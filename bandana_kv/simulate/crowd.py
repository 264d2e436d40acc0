"""Several callers at once: who misses a block that another one is reading waits, and reads none.

Callers take the requests in turn, each the next one as it gets done with one, and get on
equally fast. A request takes time in proportion to its work: what a request costs, more where it
misses a row, and more for each lookup and each block that it reads. Only ratios count, and twice
of one of them changes the reads by about a per cent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["ALONE", "Crowd", "crowd_of", "reads_left"]

_REQUEST, _MISSED_REQUEST, _LOOKUP, _BLOCK_READ = 10.0, 100.0, 0.06, 4.0
# Looking up, before a read is known to others; and a share of all that is left to do once the
# blocks are there: answer, admit, let go of the read.
_BEFORE, _AFTER = 10.0, 0.2


class Crowd(NamedTuple):
    """Callers, and the blocks that they are reading.

    Attributes
    ----------
    ends : float64 (callers,)
        When each will be done.
    until : float64 (blocks,)
        When the last read of each block is let go of: until then others join it.
    arrives : float64 (blocks,)
        When its payload is there.
    """

    ends: NDArray[np.float64]
    until: NDArray[np.float64]
    arrives: NDArray[np.float64]


ALONE = Crowd(np.zeros(1), np.zeros(0), np.zeros(0))


def crowd_of(callers: int, blocks: int) -> Crowd:
    """Return so many callers, none of whom has begun."""
    return ALONE if callers == 1 else Crowd(np.zeros(callers), np.zeros(blocks), np.zeros(blocks))


@kernel
def reads_left(crowd: Crowd, lookups: int, blocks: np.ndarray) -> int:
    """Let the next caller ask; return how many of the missed `blocks` nobody is reading."""
    ends, until, arrives = crowd
    caller = np.argmin(ends)
    begun = ends[caller]
    asked = begun + _BEFORE
    reads = 0
    for block in blocks:
        reads += until[block] <= asked
    work = _REQUEST + _LOOKUP * lookups + _BLOCK_READ * reads
    if blocks.size:
        work += _MISSED_REQUEST
    arrived = begun + (1.0 - _AFTER) * work
    all_arrived = arrived
    for block in blocks:
        if until[block] > asked:
            all_arrived = max(all_arrived, arrives[block])
    end = all_arrived + _AFTER * work
    for block in blocks:
        if until[block] <= asked:
            until[block] = end
            arrives[block] = arrived
    ends[caller] = end
    return reads
