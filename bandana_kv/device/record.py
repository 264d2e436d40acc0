"""The profile of a device: what was measured and chosen, as a file that anyone can read."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import msgspec
import numpy as np

from bandana_kv.device.mount import Mount
from bandana_kv.errors import DiskFullError, DurabilityError, FormatError, InputError
from bandana_kv.system.durable import replacing, sync_directory, sync_file
from bandana_kv.system.permission import check_permission

__all__ = [
    "FORMAT_VERSION",
    "BlockSize",
    "Cell",
    "DeviceProfile",
    "WriteRates",
    "check_writable",
    "curve",
]

FORMAT_VERSION = 1
# More than any device is measured with; what is larger would size blocks and start threads.
_MOST_BLOCK_BYTES = 1 << 24
_MOST_DEPTH = 1 << 16


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Random reads at one block size and one depth.

    Attributes
    ----------
    block_bytes : int
    depth : int
        Reads in flight at any time, over all jobs.
    jobs : int
        Threads that submit them; 1 where each read in flight has a thread of its own.
    reads_per_second, mean_us, p50_us, p99_us : float
        Of the times that the cell was measured, the quartile on the good side: other
        programs only ever slow a read down.
    """

    block_bytes: int
    depth: int
    jobs: int
    reads_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float


class BlockSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one block size offers, at its own knee.

    Attributes
    ----------
    block_bytes : int
    depth : int
        The knee: the smallest depth within 5 % of the best rate, p99 inside the budget.
    reads_per_second, p99_us : float
        At that depth.
    budget_met : bool
        False: no depth keeps the budget; `depth` is the one with the lowest p99.
    rows_per_block : int or None
        Rows that fit; None without a log, or where the size was no candidate for it.
    blocks_per_request : float or None
        Fanout of held-out requests, placed for this size.
    useful_bytes_per_second : float or None
        Bytes of rows that requests want, of all that is read.
    """

    block_bytes: int
    depth: int
    reads_per_second: float
    p99_us: float
    budget_met: bool
    rows_per_block: int | None = None
    blocks_per_request: float | None = None
    useful_bytes_per_second: float | None = None


class WriteRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Direct writes: 1 MiB one after the other, 8 in flight; 4 KiB at random, 32 in flight."""

    sequential_bytes_per_second: float
    random_writes_per_second: float


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device can do, and the block size and queue depth to use on it.

    Attributes
    ----------
    format : int
        Version of the file format.
    created : str
        Date and time, UTC, ISO 8601.
    kernel : str
    mount : Mount
        Where it was measured.
    engine : str
        ``io_uring``, ``libaio`` or ``psync`` of fio, or ``python``, whose threads reach
        less than a fast device gives.
    fio_version : str or None
    quick : bool
    file_bytes : int
        Span of the file that was read.
    cells : tuple of Cell
    skipped_block_bytes : tuple of int
        Sizes that this device cannot read directly.
    sizes : tuple of BlockSize
    block_bytes, queue_depth, jobs : int
        What was chosen.
    p99_budget_us : float
    budget_met : bool
        Whether p99 is inside the budget at the depth that was chosen.
    spread : float
        By what share the worst rate measured there fell short of the best; more than some
        0.2 says that other programs kept the device or the processors busy.
    row_bytes : int or None
        Of the log by which the block size was chosen; None without one.
    writes : WriteRates or None
    """

    format: int
    created: str
    kernel: str
    mount: Mount
    engine: str
    fio_version: str | None
    quick: bool
    file_bytes: int
    cells: tuple[Cell, ...]
    skipped_block_bytes: tuple[int, ...]
    sizes: tuple[BlockSize, ...]
    block_bytes: int
    queue_depth: int
    jobs: int
    p99_budget_us: float
    budget_met: bool
    spread: float
    row_bytes: int | None = None
    writes: WriteRates | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a profile, and check it.

        Raises
        ------
        InputError
            There is no such file, or it cannot be opened.
        FormatError
            It is damaged, no profile, or of a format newer than this release reads.
        """
        path = Path(path)
        try:
            text = path.read_bytes()
        except OSError as error:
            check_permission(error, path)
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); tools/profile_device.py makes one"
            ) from error
        try:
            found = msgspec.json.decode(text, type=_Format).format
            if found > FORMAT_VERSION:
                raise FormatError.newer(path, found, FORMAT_VERSION)
            profile = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FormatError(
                f"{path}: damaged, or no device profile ({error}); measure again"
            ) from error
        if not _is_consistent(profile):
            raise FormatError(f"{path}: its numbers contradict each other; measure again")
        return profile

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; an existing file is replaced in one step.

        Raises
        ------
        InputError
            The directory is missing or not writable, or the path is no ordinary file.
        DiskFullError
            No room; what was there before is unharmed.
        """
        path = Path(path)
        check_writable(path)
        try:
            with replacing(path) as partial, open(partial, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
                file.flush()
                sync_file(file.fileno(), path)
            sync_directory(path.parent)
        except DurabilityError:
            raise
        except OSError as error:
            check_permission(error, path)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(f"{path}: no room on the device") from error
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def matches(self, path: str | os.PathLike[str]) -> bool:
        """Return whether `path`, a directory, lies on the file system that was measured.

        By the uuid of the file system where it is known then and now; else by device id,
        mount point and type, which may change when a machine starts anew.

        Raises
        ------
        InputError
            The directory cannot be opened.
        """
        return self.mount.same_as(Mount.of(Path(path)))

    def reads_per_second(self, block_bytes: int, depth: float) -> float:
        """Return the rate of random reads, interpolated between what was measured.

        Parameters
        ----------
        block_bytes
            Of a read; outside of the measured sizes the nearest one answers.
        depth
            Reads in flight, likewise.
        """
        return self._between(block_bytes, depth, lambda cell: cell.reads_per_second)

    def latency_us(
        self, block_bytes: int, depth: float, which: Literal["mean", "p50", "p99"] = "mean"
    ) -> float:
        """Return the latency of a random read in microseconds, interpolated likewise."""
        return self._between(block_bytes, depth, lambda cell: float(getattr(cell, f"{which}_us")))

    def _between(self, block_bytes: int, depth: float, value: Callable[[Cell], float]) -> float:
        """Interpolate in logarithms, in which rate and latency are nearly straight."""
        if not (block_bytes > 0 and depth > 0):
            raise InputError(f"no reads of {block_bytes} bytes at depth {depth}")
        sizes = sorted({cell.block_bytes for cell in self.cells})
        at_depth = []
        for size in sizes:
            cells = curve(self.cells, size, self.jobs)
            depths = np.log([cell.depth for cell in cells])
            at_depth.append(np.interp(math.log(depth), depths, np.log([value(c) for c in cells])))
        return math.exp(np.interp(math.log(block_bytes), np.log(sizes), at_depth))


class _Format(msgspec.Struct):
    format: int


def curve(cells: tuple[Cell, ...], block_bytes: int, jobs: int) -> list[Cell]:
    """Return the cells of a block size by depth, each with as many of `jobs` as there is."""
    best: dict[int, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.jobs):
        if cell.block_bytes == block_bytes and cell.jobs <= jobs:
            best[cell.depth] = cell
    return [best[depth] for depth in sorted(best)]


def check_writable(path: Path) -> None:
    """Check, before the long work, that a file can be made or replaced at `path`.

    Raises
    ------
    InputError
        Its directory is missing or not writable, or the path is a directory or a device.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no ordinary file; name another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        what = "is not writable" if path.parent.is_dir() else "is not a directory"
        raise InputError(f"{path}: cannot be written, {path.parent} {what}")


def _is_consistent(profile: DeviceProfile) -> bool:
    """Check what the types cannot."""
    positive = [profile.format, profile.file_bytes, profile.p99_budget_us, profile.row_bytes or 1]
    for cell in profile.cells:
        positive += [cell.block_bytes, cell.depth, cell.jobs]
        positive += [cell.reads_per_second, cell.mean_us, cell.p50_us, cell.p99_us]
    for size in profile.sizes:
        positive += [size.reads_per_second, size.p99_us, size.rows_per_block or 1]
    measured = {(cell.block_bytes, cell.depth) for cell in profile.cells}
    knees = {(size.block_bytes, size.depth) for size in profile.sizes}
    return (
        all(number > 0 for number in positive)
        and all(
            c.block_bytes <= _MOST_BLOCK_BYTES and c.depth <= _MOST_DEPTH for c in profile.cells
        )
        and 0 <= profile.spread < 1
        and knees <= measured
        and (profile.block_bytes, profile.queue_depth) in knees
        and all(curve(profile.cells, block, profile.jobs) for block, _ in measured)
    )
