"""From measurements to a choice: the knee of a curve, the jobs, the block size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from bandana_kv.device.record import BlockSize, Cell, curve
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import fanout, place
from bandana_kv.progress import Progress

__all__ = [
    "Fit",
    "at_knees",
    "base_size",
    "best_jobs",
    "best_size",
    "contenders",
    "fits_of_log",
    "knee",
    "rows_that_fit",
]

_WITHIN = 0.95
_ALIKE = 0.9  # a step of depth more or less, at the edge of the budget, changes a rate by as much
_MAY_WIN = 0.8
_PAGE_BYTES = 4096
_HEADER_BYTES = 32
_MOST_ROWS = 32767  # in a block; what a placement allows


def knee(cells: Sequence[Cell], p99_budget_us: float) -> tuple[Cell, bool]:
    """Return where more depth stops paying.

    Parameters
    ----------
    cells
        Of one block size, by depth; not empty.
    p99_budget_us
        What p99 may take.

    Returns
    -------
    tuple of Cell and bool
        The smallest depth within 5 % of the best rate of those that keep the budget, and
        True; or, where none does, the one with the lowest p99, and False.
    """
    inside = [cell for cell in cells if cell.p99_us <= p99_budget_us]
    if not inside:
        return min(cells, key=lambda cell: cell.p99_us), False
    best = max(cell.reads_per_second for cell in inside)
    return next(cell for cell in inside if cell.reads_per_second >= _WITHIN * best), True


def best_jobs(cells: tuple[Cell, ...], block_bytes: int) -> int:
    """Return how many jobs to submit with: more than one only where that gains over 5 %."""
    rates: dict[int, float] = {}
    for cell in cells:
        if cell.block_bytes == block_bytes:
            rates[cell.jobs] = max(rates.get(cell.jobs, 0.0), cell.reads_per_second)
    return next(jobs for jobs in sorted(rates) if rates[jobs] >= _WITHIN * max(rates.values()))


class Fit(NamedTuple):
    """How the rows of a log fit blocks of one size."""

    rows_per_block: int
    blocks_per_request: float
    useful_bytes_per_block: float


def rows_that_fit(block_bytes: int, row_bytes: int) -> int:
    """Return how many rows a block of a size is to hold; 0 where it is no candidate."""
    rows = min((block_bytes - _HEADER_BYTES) // row_bytes, _MOST_ROWS)
    # Less than a page for a single row saves nothing that a key and a value do not.
    least = 1 if block_bytes % _PAGE_BYTES == 0 else 2
    return rows if rows >= least else 0


def fits_of_log(
    log: AccessLog,
    row_bytes: int,
    sizes: Sequence[int],
    *,
    ordered: bool,
    max_pins: int,
    progress: Progress,
) -> dict[int, Fit]:
    """Place the rows of a log for each block size, and look what held-out requests make of it.

    Parameters
    ----------
    log
        70 % of its requests are learnt from, the others held out.
    row_bytes
        Of a row.
    sizes
        Block sizes to consider, in bytes.
    ordered
        Learn from the start of the log, and not from a random part.
    max_pins
        Lookups to learn from at most.
    progress
        Told of the sizes done.

    Raises
    ------
    InputError
        No size holds a row, or no request with a lookup is held out.

    Notes
    -----
    Cost: a fast placement for each size, about a second a million lookups.
    """
    learn, test = log.split(train=0.7, ordered=ordered, seed=0)
    # with a row a block, blocks are distinct rows
    rows_per_request = fanout(test, place(None, log.rows, 1, "identity"))
    if rows_per_request == 0 or learn.lookups == 0:
        raise InputError(f"{log.source}: too few requests to learn from some and hold out others")
    candidates = {size: rows_that_fit(size, row_bytes) for size in sizes}
    candidates = {size: rows for size, rows in candidates.items() if rows}
    if not candidates:
        raise InputError(
            f"no block size holds a row of {row_bytes} bytes; the largest is {sizes[-1]}"
        )
    progress.start("place", len(candidates), "block sizes")
    fits = {}
    for size, rows in candidates.items():
        placement = place(learn, log.rows, rows, "shp", quality="fast", max_pins=max_pins)
        blocks = fanout(test, placement)
        fits[size] = Fit(rows, blocks, rows_per_request * row_bytes / blocks)
        progress.advance(1)
    progress.finish()
    return fits


def base_size(block_sizes: Sequence[int]) -> int:
    """Return the size with which others are compared: 4 KiB, or what can be read instead."""
    return min(
        (size for size in block_sizes if size >= _PAGE_BYTES), default=max(block_sizes, default=0)
    )


def at_knees(
    cells: tuple[Cell, ...],
    block_sizes: Sequence[int],
    jobs: int,
    p99_budget_us: float,
    fits: Mapping[int, Fit],
) -> list[BlockSize]:
    """Return what each block size offers at its knee, and to a log where there is one."""
    sizes = []
    for block_bytes in block_sizes:
        cell, met = knee(curve(cells, block_bytes, jobs), p99_budget_us)
        size = BlockSize(block_bytes, cell.depth, cell.reads_per_second, cell.p99_us, met)
        fit = fits.get(block_bytes)
        if fit is not None:
            size = msgspec.structs.replace(
                size,
                rows_per_block=fit.rows_per_block,
                blocks_per_request=fit.blocks_per_request,
                useful_bytes_per_second=cell.reads_per_second * fit.useful_bytes_per_block,
            )
        sizes.append(size)
    return sizes


def best_size(cells: tuple[Cell, ...], sizes: Sequence[BlockSize], jobs: int) -> BlockSize:
    """Return the block size to use.

    Parameters
    ----------
    cells, jobs
        What was measured, and the number of jobs to look at.
    sizes
        From :func:`at_knees`, the smallest first.

    Returns
    -------
    BlockSize
        Of those within 10 % of the most useful bytes a second 4 KiB, else the smallest; where
        no log says what is useful, the smallest within 5 % of the rate of 4 KiB.
    """
    base_bytes = base_size([size.block_bytes for size in sizes])
    (base,) = (size for size in sizes if size.block_bytes == base_bytes)
    useful = [size.useful_bytes_per_second or 0.0 for size in sizes]
    if any(useful):
        # Two runs differ by less than that; pages are then what engines read.
        best = [s for s, u in zip(sizes, useful, strict=True) if u >= _ALIKE * max(useful)]
        return base if base in best else best[0]

    def rate(size: BlockSize) -> float:
        # At one depth for both: else the steps between depths decide, and not the size.
        at_depth = {c.depth: c.reads_per_second for c in curve(cells, size.block_bytes, jobs)}
        return at_depth[base.depth]

    return next(size for size in sizes if rate(size) >= _WITHIN * rate(base))


def contenders(
    cells: tuple[Cell, ...],
    block_sizes: Sequence[int],
    jobs: int,
    p99_budget_us: float,
    fits: Mapping[int, Fit],
) -> list[int]:
    """Return the block sizes that may still turn out to be the best."""
    if not fits:
        return [size for size in block_sizes if size <= base_size(block_sizes)]
    sizes = at_knees(cells, block_sizes, jobs, p99_budget_us, fits)
    useful = {size.block_bytes: size.useful_bytes_per_second or 0.0 for size in sizes}
    return [size for size in block_sizes if useful[size] >= _MAY_WIN * max(useful.values())]
