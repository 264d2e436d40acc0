"""Refinement: rounds of swaps inside groups of neighbouring blocks, many groups at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.hypergraph import Hypergraph
from bandana_kv.placement.neighbours import MOST_CELLS, group_blocks, touched_blocks
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.randomness import salted
from bandana_kv.placement.swaps import refine_members

__all__ = ["ROUNDS_PER_LOOK", "Schedule", "blocks_in_group", "positions_of_blocks", "refine"]

# Which blocks a request touches is looked up anew after so many rounds: neighbourhoods
# change slowly.
ROUNDS_PER_LOOK = 3


class Schedule(NamedTuple):
    """How much to refine."""

    rounds: int  # each with other groups
    sweeps: int  # at most so many over the rows of a group
    group_rows: int  # about so many rows in a group
    rate: float  # p of p-fanout
    heat: float  # temperature of the first round, in blocks of one request; falls to nothing


def blocks_in_group(schedule: Schedule, rows_per_block: int) -> int:
    """Return how many blocks are refined together."""
    # with few rows in a block more blocks fit, but more than this no longer helps
    return min(max(schedule.group_rows // rows_per_block, 4), 128)


def refine(
    graph: Hypergraph,
    order: NDArray[np.int32],
    rows_per_block: int,
    schedule: Schedule,
    seed: int,
    workers: Workers,
) -> None:
    """Swap rows between blocks until the schedule is done; changes `order`.

    Parameters
    ----------
    graph
        The hypergraph of the log.
    order
        int32 (vertices,): the vertices by position.
    rows_per_block
        Rows in a full block.
    schedule
        How much to refine.
    seed
        Decides groups and order of the swaps.
    workers
        The threads; their number changes nothing in the result.

    Notes
    -----
    Cost: per round some 0.4 microseconds a pin of one processor while much changes, less later;
    4 bytes for each block that each request touches, and 4 bytes a request and thread.
    """
    blocks = -(-order.size // rows_per_block)
    if blocks < 2 or rows_per_block < 2 or schedule.rounds == 0:
        return
    size = blocks_in_group(schedule, rows_per_block)
    numbers = [np.zeros(graph.requests, np.int32) for _ in range(workers.threads)]
    touched = (np.empty(0, np.int64), np.empty(0, np.int32))
    with workers.stage("refine", schedule.rounds * blocks, "blocks"):
        for number in range(schedule.rounds):
            salt = salted(seed, number)
            if number % ROUNDS_PER_LOOK == 0:
                touched = touched_blocks(
                    graph.offsets, graph.pins, order, rows_per_block, graph.requests
                )
            groups = group_blocks(
                graph.offsets, graph.pins, order, rows_per_block, *touched, size, salt, MOST_CELLS
            )
            cooled = schedule.heat * (1 - number / max(schedule.rounds - 1, 1))
            now = schedule._replace(heat=cooled)
            _refine_groups(graph, order, rows_per_block, groups, now, int(salt), numbers, workers)


def _refine_groups(
    graph: Hypergraph,
    order: NDArray[np.int32],
    rows_per_block: int,
    groups: tuple[NDArray[np.int64], NDArray[np.int32]],
    schedule: Schedule,
    seed: int,
    numbers: list[NDArray[np.int32]],
    workers: Workers,
) -> None:
    """Swap inside each group of blocks; groups have no block in common."""
    ends, members = groups

    def work(index: int, worker: int) -> None:
        blocks = members[ends[index] : ends[index + 1]]
        if blocks.size > 1:
            positions = positions_of_blocks(blocks, rows_per_block, order.size)
            order[positions] = refine_members(
                graph.offsets,
                graph.pins,
                order[positions],
                rows_per_block,
                schedule.rate,
                schedule.sweeps,
                schedule.heat,
                salted(seed, index),
                numbers[worker],
                workers.stop,
            )
        workers.done[worker] += blocks.size

    workers.each(ends.size - 1, work)


def positions_of_blocks(
    blocks: NDArray[np.int32], rows_per_block: int, rows: int
) -> NDArray[np.int64]:
    """Return the positions in `blocks`, which ascend; the last block may be part full."""
    begins = blocks.astype(np.int64) * rows_per_block
    positions = (begins[:, None] + np.arange(rows_per_block)).ravel()
    return positions[positions < rows]
