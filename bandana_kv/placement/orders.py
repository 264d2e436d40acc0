"""Plain orders: as the ids come, shuffled, and by popularity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.counts import lookups_of_id, positions_of_order
from bandana_kv.placement.registry import Job, register


@register("identity")
def _identity(job: Job) -> NDArray[np.uint32]:
    return np.arange(job.rows, dtype=np.uint32)


@register("shuffled")
def _shuffled(job: Job) -> NDArray[np.uint32]:
    return np.random.default_rng(job.seed).permutation(job.rows).astype(np.uint32)


@register("popularity")
def _popularity(job: Job) -> NDArray[np.uint32]:
    lookups = lookups_of_id(job.needed_log("popularity"), job.rows)
    return positions_of_order(np.argsort(-lookups, kind="stable"))
