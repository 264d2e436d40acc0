"""Miniature logs: the lookups that fall into a sample of the blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bandana_kv.access_log import AccessLog
    from bandana_kv.placement import Placement

__all__ = ["sample_blocks"]


def sample_blocks(log: AccessLog, placement: Placement, rate: float, seed: int) -> AccessLog:
    """Return the part of `log` that looks up rows in a random share `rate` of the blocks.

    A cache of ``rate * capacity`` rows behaves on it as one of `capacity` rows on the whole
    log. Blocks are sampled, not rows: sampling rows would destroy what neighbours are worth.
    Source: miniature simulation (Waldspurger et al., ATC 2017), here by block.

    Parameters
    ----------
    log
        Requests; the result has as many, some of them empty.
    placement
        Where each id lies.
    rate
        Share of the blocks, 0 to 1.
    seed
        Of the choice.
    """
    kept_block = np.random.default_rng(seed).random(placement.blocks) < rate
    kept = kept_block[placement.position_of_id[log.ids] // placement.rows_per_block]
    before = np.zeros(log.lookups + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    return replace(log, offsets=before[log.offsets], ids=log.ids[kept])
