"""Measure a device: write a file, read it in every way, choose."""

from __future__ import annotations

import datetime
import os
import platform
import time
from pathlib import Path

from bandana_kv.device import choose
from bandana_kv.device.engine import Engine, Shape
from bandana_kv.device.fio import IO_ENGINES, Fio, find_fio
from bandana_kv.device.record import FORMAT_VERSION, DeviceProfile, WriteRates, curve
from bandana_kv.device.sweep import BLOCK_SIZES, FULL, QUICK, Effort, Sweep
from bandana_kv.device.threads import Threads
from bandana_kv.device.workfile import WorkFile, check_place, work_file
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.progress import Progress

__all__ = ["ENGINES", "profile"]

ENGINES = ("fio", *IO_ENGINES, "python")
"""``fio`` takes the first of its I/O engines that works."""


def profile(
    directory: str | os.PathLike[str],
    *,
    quick: bool = False,
    engine: str = "fio",
    p99_budget_us: float = 1000.0,
    log: AccessLog | None = None,
    row_bytes: int | None = None,
    ordered: bool = False,
    writes: bool = False,
    progress: Progress | None = None,
) -> DeviceProfile:
    """Measure the device under a directory, and choose block size and queue depth.

    Parameters
    ----------
    directory
        On the file system to measure. A file without a name is made in it, which is gone
        with the process, however that ends.
    quick
        In under a minute, of a file of 512 MiB; else some six minutes, of one of 4 GiB.
    engine
        ``"fio"``: with io_uring, else libaio, else psync; or one of these three; or
        ``"python"``, threads that need no fio and reach less.
    p99_budget_us
        What the 99th percentile of a read's latency may be at the depth to use.
    log
        Requests of the table. The block size is then the one with the most useful bytes a
        second: rows that held-out requests want, over the blocks that they touch, times the
        rate of that size; of those within 10 % of the best 4 KiB, else the smallest. Without
        a log it is the smallest size that is read within 5 % as often as 4 KiB.
    row_bytes
        Of a row; goes with `log`.
    ordered
        The log is in order of time: learn on its start.
    writes
        Also measure writes.
    progress
        Receives progress; by default nobody does.

    Returns
    -------
    DeviceProfile
        Its `budget_met` is False where no depth keeps the budget; the depth is then the
        one with the lowest p99.

    Raises
    ------
    InputError
        An argument is wrong, the directory is not on a device, is read-only, or has no
        direct I/O, or the engine failed.
    DiskFullError
        No room for the file.
    MissingExtraError
        fio is not installed.

    Notes
    -----
    Cost: the file's bytes written once (more with `writes`), and the device kept busy.
    """
    directory, progress = Path(directory), progress or Progress()
    effort = QUICK if quick else FULL
    begun = time.monotonic()
    _check_arguments(engine, p99_budget_us, log, row_bytes)
    if engine != "python":
        find_fio()
    mount = check_place(directory, effort.file_bytes)
    fits: dict[int, choose.Fit] = {}
    if log is not None and row_bytes is not None:
        fits = choose.fits_of_log(
            log,
            row_bytes,
            BLOCK_SIZES,
            ordered=ordered,
            max_pins=effort.max_pins,
            progress=progress,
        )
    with work_file(directory, effort.file_bytes, progress) as file:
        driver = _driver(engine, file)
        block_sizes = [size for size in BLOCK_SIZES if file.can_read(size)]
        if not block_sizes:
            raise InputError(f"{directory}: no block size can be read directly")
        sweep = Sweep(driver, file, progress, effort.milliseconds, p99_budget_us, fits)
        sweep.run(block_sizes, effort, begun)
        rates = _write_rates(driver, file, effort) if writes else None
    cells, jobs = sweep.cells(), sweep.jobs
    sizes = choose.at_knees(cells, block_sizes, jobs, p99_budget_us, fits)
    chosen = choose.best_size(cells, sizes, jobs)
    at_knee = next(c for c in curve(cells, chosen.block_bytes, jobs) if c.depth == chosen.depth)
    return DeviceProfile(
        format=FORMAT_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        kernel=platform.release(),
        mount=mount,
        engine=driver.name,
        fio_version=driver.fio_version,
        quick=quick,
        file_bytes=effort.file_bytes,
        cells=cells,
        skipped_block_bytes=tuple(size for size in BLOCK_SIZES if size not in block_sizes),
        sizes=tuple(sizes),
        block_bytes=chosen.block_bytes,
        queue_depth=chosen.depth,
        jobs=jobs,
        p99_budget_us=p99_budget_us,
        budget_met=chosen.budget_met,
        spread=sweep.spread(at_knee),
        row_bytes=row_bytes,
        writes=rates,
    )


def _check_arguments(
    engine: str, p99_budget_us: float, log: AccessLog | None, row_bytes: int | None
) -> None:
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if not 0 < p99_budget_us < float("inf"):
        raise InputError(f"the budget for p99 must be some microseconds, not {p99_budget_us}")
    if (log is None) != (row_bytes is None):
        raise InputError("a log and the bytes of a row go together: give both, or neither")
    if row_bytes is not None and row_bytes < 1:
        raise InputError(f"a row has at least 1 byte, not {row_bytes}")


def _driver(engine: str, file: WorkFile) -> Engine:
    if engine == "python":
        return Threads()
    return Fio.that_works(file, IO_ENGINES if engine == "fio" else (engine,))


def _write_rates(driver: Engine, file: WorkFile, effort: Effort) -> WriteRates:
    milliseconds = 10 * effort.milliseconds
    (sequential,) = driver.measure(file, "write", [Shape(1 << 20, 8, 1)], milliseconds)
    (random,) = driver.measure(file, "randwrite", [Shape(4096, 32, 1)], milliseconds)
    return WriteRates(sequential.per_second * (1 << 20), random.per_second)
