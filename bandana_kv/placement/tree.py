"""Recursive bisection on several threads: the same cuts whatever their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.bisection import (
    Part,
    Recipe,
    arrange,
    begin_cut,
    decay_table,
    request_gains,
    row_bins,
    rows_on_the_left,
    side_of_cut,
    split,
    swap_best,
)
from bandana_kv.placement.hypergraph import Hypergraph
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.randomness import salted

__all__ = ["arrange_all"]

# Above so many pins a single cut is shared by all threads; below, threads take whole parts.
_SHARED_PINS = 1 << 22
# A thread takes parts of at most this share of the pins, divided by the threads, to the end.
_SHARE = 8


def arrange_all(
    graph: Hypergraph, rows_per_block: int, recipe: Recipe, seed: int, workers: Workers
) -> NDArray[np.int32]:
    """Bisect until each piece fills one block.

    Parameters
    ----------
    graph
        Each cut starts from the order of its vertices.
    rows_per_block
        Rows in a full block.
    recipe
        How to bisect.
    seed
        Decides which swaps are left out.
    workers
        The threads.

    Returns
    -------
    ndarray
        int32 (vertices,): the vertices by position.

    Notes
    -----
    Cost: iterations * log2(blocks) passes over the pins, fewer as requests fall apart;
    memory of some 12 bytes a pin.
    """
    order = np.empty(graph.vertices, np.int32)
    salt = salted(seed, 0)
    sizes = np.bincount(graph.pins, minlength=graph.requests).astype(np.int32)
    names = np.arange(graph.vertices, dtype=np.int32)
    root = Part(graph.offsets, graph.pins, sizes, names, 0)
    small = max(graph.pins.size // (_SHARE * workers.threads), 1 << 14)
    levels = int(np.ceil(np.log2(max(graph.vertices / rows_per_block, 1))))

    def work(part: Part, worker: int) -> list[Part]:
        done = workers.done[worker : worker + 1]
        rows = part.vertices.size
        if part.pins.size <= small or rows <= rows_per_block or workers.stop[0]:
            arrange(part, rows_per_block, recipe, salt, order, workers.stop, done)
            return []
        done[0] += rows
        return list(split(part, rows_per_block, recipe, salt, workers.stop))

    with workers.stage("bisect", graph.vertices * levels, "rows"):
        waiting = [root]
        while waiting:
            part = waiting.pop()
            if workers.threads > 1 and part.pins.size > _SHARED_PINS:
                waiting += _split_together(part, rows_per_block, recipe, salt, workers)
            else:
                workers.grow(part, work)
    return order


def _split_together(
    part: Part, rows_per_block: int, recipe: Recipe, seed: np.uint64, workers: Workers
) -> list[Part]:
    """Do what the kernel `split` does, each of its loops shared by all threads."""
    rows, requests = part.vertices.size, part.sizes.size
    cut = begin_cut(part, rows_on_the_left(rows, rows_per_block))
    decay = decay_table(part.sizes, recipe.rate)
    slices = 4 * workers.threads
    row_ends = np.searchsorted(part.offsets, np.linspace(0, part.pins.size, slices + 1))
    row_ends[0], row_ends[-1] = 0, rows
    request_ends = np.linspace(0, requests, slices + 1).astype(np.int64)

    def gains(index: int, _: int) -> None:
        request_gains(part, cut, decay, request_ends[index], request_ends[index + 1])

    def bins(index: int, _: int) -> None:
        row_bins(part, cut, row_ends[index], row_ends[index + 1])

    for iteration in range(recipe.iterations):
        workers.each(slices, gains)
        workers.each(slices, bins)
        if not swap_best(part, cut, recipe.keep, seed, iteration):
            break
    sides: dict[int, Part] = {}

    def copy(own: int, _: int) -> None:
        sides[own] = side_of_cut(part, cut, own, recipe.by_gain)

    workers.each(2, copy)
    workers.done[0] += rows
    return [sides[0], sides[1]]
