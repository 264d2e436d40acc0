"""Measuring without fio: threads of Python that read one block after the other.

A read releases the GIL, what is around it does not, so that this reaches less than a fast
device gives. It answers where fio cannot be installed, and its profiles say so.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
from numpy.typing import NDArray

from bandana_kv.device.engine import Kind, Measured, Shape
from bandana_kv.device.workfile import WorkFile
from bandana_kv.errors import InputError

__all__ = ["Threads"]

_OFFSETS = 4096


class Threads:
    """Reads in flight, each in a thread of its own."""

    name = "python"
    fio_version = None
    job_counts = (1,)

    def measure(
        self, file: WorkFile, kind: Kind, shapes: Sequence[Shape], milliseconds: int
    ) -> list[Measured]:
        """Measure each shape for so long, one after the other.

        Raises
        ------
        InputError
            A read or write failed.
        """
        try:
            return [_measure(file, kind, shape, milliseconds) for shape in shapes]
        except OSError as error:
            raise InputError(f"{kind} failed: {error.strerror}") from error


def _measure(file: WorkFile, kind: Kind, shape: Shape, milliseconds: int) -> Measured:
    barrier = Barrier(shape.depth)

    def work(number: int) -> tuple[int, int, list[int]]:
        with mmap.mmap(-1, shape.block_bytes) as block:
            offsets = _offsets(file, kind, shape, number)
            barrier.wait()
            begun = time.perf_counter_ns()
            took_ns = _repeat(file.handle, kind, block, offsets, begun + milliseconds * 1_000_000)
            return begun, time.perf_counter_ns(), took_ns

    with ThreadPoolExecutor(shape.depth) as pool:
        parts = list(pool.map(work, range(shape.depth)))
    begun, ended = min(part[0] for part in parts), max(part[1] for part in parts)
    took_us = np.concatenate([part[2] for part in parts]) / 1e3
    p50, p99 = np.percentile(took_us, (50, 99))
    per_second = took_us.size / (ended - begun) * 1e9
    return Measured(per_second, float(took_us.mean()), float(p50), float(p99))


def _offsets(file: WorkFile, kind: Kind, shape: Shape, number: int) -> NDArray[np.int64]:
    """Return where a thread reads or writes: at random, or its share of the file in order."""
    blocks = file.bytes // shape.block_bytes
    if kind == "write":
        numbers = np.arange(number, number + blocks, shape.depth) % blocks
    else:
        numbers = np.random.default_rng().integers(blocks, size=_OFFSETS)
    return numbers.astype(np.int64) * shape.block_bytes


def _repeat(
    handle: int, kind: Kind, block: mmap.mmap, offsets: NDArray[np.int64], end: int
) -> list[int]:
    """Read or write until it is time, at least once; return nanoseconds of each."""
    transfer: Callable[[int, list[mmap.mmap], int], int]
    transfer = os.preadv if kind == "randread" else os.pwritev
    buffers, clock = [block], time.perf_counter_ns
    took_ns: list[int] = []
    while True:
        for offset in offsets.tolist():
            begin = clock()
            transfer(handle, buffers, offset)
            done = clock()
            took_ns.append(done - begin)
            if done >= end:
                return took_ns
