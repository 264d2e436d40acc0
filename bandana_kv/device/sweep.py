"""Measure every shape, and the ones on which the choice hangs again and again.

Passes over all shapes alternate, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bandana_kv.device import choose
from bandana_kv.device.engine import Engine, Measured, Shape
from bandana_kv.device.priority import preferred
from bandana_kv.device.record import Cell, curve
from bandana_kv.device.workfile import WorkFile
from bandana_kv.progress import Progress

__all__ = ["BLOCK_SIZES", "DEPTHS", "FULL", "QUICK", "Effort", "Sweep"]

BLOCK_SIZES = tuple(512 << step for step in range(9))
DEPTHS = tuple(1 << step for step in range(9))


class Effort(NamedTuple):
    """How much to measure.

    Attributes
    ----------
    file_bytes : int
    milliseconds : int
        For a shape, each time.
    passes : int
        Over all shapes.
    rounds : int
        Over the shapes near the knees, after that.
    seconds : float
        Within which the last round must end, as far as the one before it tells.
    all_jobs : bool
        Every block size with each number of jobs; else only the size that others are
        compared with, and the others as is best for it.
    max_pins : int
        Lookups of a log to learn from.
    """

    file_bytes: int
    milliseconds: int
    passes: int
    rounds: int
    seconds: float
    all_jobs: bool
    max_pins: int


QUICK = Effort(512 << 20, 100, 1, 4, 52.0, False, 2_000_000)
FULL = Effort(4 << 30, 500, 2, 4, float("inf"), True, 20_000_000)


@dataclass
class Sweep:
    """Measurements of random reads on one file.

    Attributes
    ----------
    driver, file, progress
        What measures, what is read, and who is told.
    milliseconds
        For a shape, each time.
    p99_budget_us
        Decides where the knees are.
    fits
        By block size, how a log fits; empty without one.
    jobs
        The number of jobs to use, known after the first pass.
    """

    driver: Engine
    file: WorkFile
    progress: Progress
    milliseconds: int
    p99_budget_us: float
    fits: Mapping[int, choose.Fit]
    jobs: int = 1
    _samples: dict[Shape, list[Measured]] = field(default_factory=dict)

    def cells(self) -> tuple[Cell, ...]:
        """Return what is known of every shape measured so far."""
        cells = []
        for shape, samples in sorted(self._samples.items()):
            # What disturbs a measurement only ever makes it worse, so the good side counts.
            rate = float(np.quantile([sample.per_second for sample in samples], 0.75))
            latencies = np.quantile([sample[1:] for sample in samples], 0.25, axis=0)
            cells.append(Cell(*shape, rate, *latencies.tolist()))
        return tuple(cells)

    def spread(self, cell: Cell) -> float:
        """Return by how much of the best rate of a cell its worst one fell short."""
        samples = self._samples[Shape(cell.block_bytes, cell.depth, cell.jobs)]
        rates = [sample.per_second for sample in samples]
        return 1.0 - min(rates) / max(rates)

    def run(self, block_sizes: Sequence[int], effort: Effort, begun: float) -> None:
        """Measure all that `effort` says, of which the seconds count from `begun`."""
        with preferred():
            for number in range(effort.passes):
                self._pass(block_sizes, effort.all_jobs, number)
            took = 0.0
            for number in range(effort.rounds):
                now = time.monotonic()
                if now + took - begun > effort.seconds:
                    break
                self._round(block_sizes, number)
                took = time.monotonic() - now

    def _pass(self, block_sizes: Sequence[int], all_jobs: bool, number: int) -> None:
        base = choose.base_size(block_sizes)
        every = self.driver.job_counts
        first = _shapes(base, every)
        others = [size for size in block_sizes if size != base]
        per_size = len(first) if all_jobs else len(DEPTHS)
        total = len(first) + len(others) * per_size
        self.progress.start(f"measure, pass {number + 1}", total, "shapes")
        self._measure(first)
        if number == 0:
            self.jobs = choose.best_jobs(self.cells(), base)
        for size in others:
            self._measure(_shapes(size, every if all_jobs else (self.jobs,)))
        self.progress.finish()

    def _round(self, block_sizes: Sequence[int], number: int) -> None:
        cells = self.cells()
        shapes = [
            self._near_knees(cells, size, choose.base_size(block_sizes))
            for size in choose.contenders(
                cells, block_sizes, self.jobs, self.p99_budget_us, self.fits
            )
        ]
        self.progress.start(f"near the knees, {number + 1}", sum(map(len, shapes)), "shapes")
        for of_size in shapes:
            self._measure(of_size)
        self.progress.finish()

    def _near_knees(self, cells: tuple[Cell, ...], block_bytes: int, base: int) -> list[Shape]:
        """Return the shapes next to a size's own knee, and to the one it is compared at."""
        near = set()
        for size in (block_bytes, base):
            at, _ = choose.knee(curve(cells, size, self.jobs), self.p99_budget_us)
            near |= {at.depth // 2, at.depth, at.depth * 2}
        of_size = curve(cells, block_bytes, self.jobs)
        return [Shape(block_bytes, cell.depth, cell.jobs) for cell in of_size if cell.depth in near]

    def _measure(self, shapes: Sequence[Shape]) -> None:
        found = self.driver.measure(self.file, "randread", shapes, self.milliseconds)
        for shape, sample in zip(shapes, found, strict=True):
            self._samples.setdefault(shape, []).append(sample)
        self.progress.advance(len(shapes))


def _shapes(block_bytes: int, job_counts: Sequence[int]) -> list[Shape]:
    """Return the shapes of a block size; two jobs cannot share a single read in flight."""
    return sorted(
        {Shape(block_bytes, depth, min(jobs, depth)) for jobs in job_counts for depth in DEPTHS}
    )
