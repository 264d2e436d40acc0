"""Refinement across parts: groups of neighbouring blocks, wherever they lie, as tasks.

A group knows nothing of another, so what :mod:`bandana_kv.placement.refine` does with threads is
done here by tasks, to the same result. Which blocks are neighbours, the driver finds from as many
requests as it has room for; where these are all, the result is that of one machine, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.distributed.fine import local_graph
from bandana_kv.placement.distributed.kernels import drawn, picked
from bandana_kv.placement.distributed.memory import Room
from bandana_kv.placement.distributed.runner import Runner, Sums
from bandana_kv.placement.distributed.shares import Requests, Share, keep, mapped
from bandana_kv.placement.distributed.shuffle import Bundle, forget, shuffle
from bandana_kv.placement.hypergraph import Hypergraph, build_hypergraph, count_requests
from bandana_kv.placement.neighbours import group_blocks, touched_blocks
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.randomness import salted
from bandana_kv.placement.refine import (
    ROUNDS_PER_LOOK,
    Schedule,
    blocks_in_group,
    positions_of_blocks,
)
from bandana_kv.placement.swaps import refine_members
from bandana_kv.progress import Progress

__all__ = ["refine_across", "sampled_graph"]

_SAMPLE = "sample"


class GroupsTask(NamedTuple):
    """What a task is given: some groups."""

    bundle: Bundle
    rows: NDArray[np.int32]  # (n,): group by group, by block
    ends: NDArray[np.int64]  # (groups + 1,), into rows
    first: int  # number of the first group
    table_rows: int
    rows_per_block: int
    schedule: Schedule
    salt: int
    threads: int


def refined(task: GroupsTask) -> NDArray[np.int32]:
    """Return which of the task's rows lies at each place after swaps inside its groups."""
    graph = local_graph(task.bundle, task.rows, task.table_rows)
    order = np.arange(task.rows.size, dtype=np.int32)
    numbers = [np.zeros(graph.requests, np.int32) for _ in range(task.threads)]
    with Workers(task.threads, Progress()) as workers:

        def work(index: int, worker: int) -> None:
            members = order[task.ends[index] : task.ends[index + 1]]
            if members.size > task.rows_per_block:
                members[:] = refine_members(
                    graph.offsets,
                    graph.pins,
                    members.copy(),
                    task.rows_per_block,
                    task.schedule.rate,
                    task.schedule.sweeps,
                    task.schedule.heat,
                    salted(task.salt, task.first + index),
                    numbers[worker],
                    workers.stop,
                )

        workers.each(task.ends.size - 1, work)
    return order


def sample(shares: Sequence[Share], below: int) -> Sums:
    """Keep those requests that a lot draws; return how many rows they have."""
    pins = np.zeros(1, np.int64)
    for share in shares:
        requests = share.requests()
        salt = np.uint64(~share.salt % 2**64)
        chosen = drawn(share.first, requests.ends.size - 1, salt, below)
        ends, ids = picked(requests.ends, requests.ids, chosen)
        keep(_sample_path(share, "ends"), ends)
        keep(_sample_path(share, "ids"), ids)
        pins += ids.size
    return (pins,)


def _sample_path(share: Share, what: str) -> Path:
    return Path(share.directory) / f"{_SAMPLE}.share-{share.number:05}.{what}"


def _sampled(share: Share) -> Requests:
    ends, ids = _sample_path(share, "ends"), _sample_path(share, "ids")
    return Requests(mapped(ends, np.int64), mapped(ids, np.int32))


def sampled_graph(
    runner: Runner, shares: Sequence[Share], rows: NDArray[np.int32], pins: int, most_pins: int
) -> tuple[Hypergraph, float]:
    """Return the hypergraph of about `most_pins` of the log's `pins`, and which share they are.

    Its vertices are `rows`, in this order; requests are drawn whole.
    """
    rate = min(1.0, most_pins / max(pins, 1))
    if rate < 1.0:
        runner.map_log(sample, shares, int(rate * 2**32))
        found = [_sampled(share) for share in shares]
    else:
        found = [share.requests() for share in shares]
    lengths = [np.zeros(1, np.int64), *(np.diff(ends) for ends, _ in found)]
    offsets = np.cumsum(np.concatenate(lengths))
    ids = np.concatenate([ids for _, ids in found])
    counts = count_requests(offsets, ids, shares[0].rows)
    return build_hypergraph(offsets, ids, rows, counts), rate


def refine_across(
    runner: Runner,
    shares: Sequence[Share],
    rows: NDArray[np.int32],
    degree: NDArray[np.int32],
    rows_per_block: int,
    schedule: Schedule,
    seed: int,
    room: Room,
    progress: Progress,
) -> NDArray[np.int32]:
    """Return the rows by position, after swaps between blocks wherever they lie.

    Parameters
    ----------
    runner, shares
        Who knows the requests.
    rows
        int32 (n,): the rows by position.
    degree
        int32 (rows of the table,): the requests that each row is in.
    rows_per_block
        Rows in a full block.
    schedule
        How much to refine.
    seed
        Decides groups and order of the swaps.
    room
        What fits into a worker, and of a sample of the log into the driver.
    progress
        Told of the rounds.

    Notes
    -----
    Cost: for each round the pins of requests with two rows in a group go through the work
    directory, 4 bytes each, and 8 bytes a row up and down.
    """
    blocks = -(-rows.size // rows_per_block)
    if blocks < 2 or rows_per_block < 2 or schedule.rounds == 0:
        return rows
    job = _Job(runner, shares, rows, degree, rows_per_block, room, progress)
    size = blocks_in_group(schedule, rows_per_block)
    pins = int(degree.sum(dtype=np.int64))
    graph, rate = sampled_graph(runner, shares, rows, pins, room.pins)
    order = np.arange(rows.size, dtype=np.int32)
    touched = (np.empty(0, np.int64), np.empty(0, np.int32))
    progress.start("refine", schedule.rounds * blocks, "blocks")
    for number in range(schedule.rounds):
        salt = salted(seed, number)
        if number % ROUNDS_PER_LOOK == 0:
            touched = touched_blocks(
                graph.offsets, graph.pins, order, rows_per_block, graph.requests
            )
        grouped = group_blocks(
            graph.offsets,
            graph.pins,
            order,
            rows_per_block,
            *touched,
            size,
            salt,
            int(room.cells * rate),
        )
        cooled = schedule.heat * (1 - number / max(schedule.rounds - 1, 1))
        now = schedule._replace(heat=cooled)
        _one_round(job, order, grouped, now, number, int(salt))
    progress.finish()
    forget(shares[0].directory, _SAMPLE)
    return rows[order]


class _Job(NamedTuple):
    """What all rounds have in common."""

    runner: Runner
    shares: Sequence[Share]
    rows: NDArray[np.int32]
    degree: NDArray[np.int32]
    rows_per_block: int
    room: Room
    progress: Progress


def _one_round(
    job: _Job,
    order: NDArray[np.int32],
    grouped: tuple[NDArray[np.int64], NDArray[np.int32]],
    schedule: Schedule,
    number: int,
    salt: int,
) -> None:
    """Refine each group once; changes the order."""
    runner, shares, rows_per_block = job.runner, job.shares, job.rows_per_block
    ends, members = grouped
    groups = ends.size - 1
    places = [
        positions_of_blocks(members[ends[i] : ends[i + 1]], rows_per_block, order.size)
        for i in range(groups)
    ]
    row_ends = np.cumsum([0, *(each.size for each in places)])
    positions = np.concatenate(places)
    placed = job.rows[order[positions]]
    place_of_row = np.full(shares[0].rows, -1, np.int32)
    place_of_row[placed] = np.repeat(np.arange(groups, dtype=np.int32), np.diff(row_ends))
    pins = np.add.reduceat(job.degree[placed].astype(np.int64), row_ends[:-1])
    bundle_of_group = _bundles(pins, job.room.pins, 4 * runner.workers)
    # of its own: a worker that was given up may still write for the round before
    name = f"groups-{number}"
    written, _ = runner.map_log(
        shuffle,
        shares,
        name,
        runner.broadcast(place_of_row),
        runner.broadcast(bundle_of_group),
    )
    runner.moved.files_bytes += int(written[0])
    firsts = np.searchsorted(bundle_of_group, np.arange(bundle_of_group[-1] + 2)).tolist()
    tasks, slices = [], []
    for bundle, (first, last) in enumerate(pairwise(firsts)):
        begin, end = int(row_ends[first]), int(row_ends[last])
        slices.append((begin, end))
        tasks.append(
            GroupsTask(
                Bundle(shares[0].directory, name, len(shares), bundle),
                placed[begin:end],
                row_ends[first : last + 1] - begin,
                first,
                shares[0].rows,
                rows_per_block,
                schedule,
                salt,
                runner.threads,
            )
        )
    for number, found in runner.each(refined, tasks):
        begin, end = slices[number]
        at = positions[begin:end]
        order[at] = order[at][found]
        job.progress.advance((end - begin) // rows_per_block)
    forget(shares[0].directory, name)


def _bundles(pins: NDArray[np.int64], most_pins: int, least: int) -> NDArray[np.int32]:
    """Give groups to tasks, as they come: of at most so many pins, and at least so many tasks."""
    wanted = min(most_pins, int(pins.sum()) // least + 1)
    bundle_of_group = np.empty(pins.size, np.int32)
    bundle, filled = 0, 0
    for group, count in enumerate(pins.tolist()):
        if filled and filled + count > wanted:
            bundle, filled = bundle + 1, 0
        bundle_of_group[group] = bundle
        filled += count
    return bundle_of_group
