"""Start the child process, wait for it, and see that it is gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import PartitionerError
from bandana_kv.placement.outside import child
from bandana_kv.placement.outside.nets import Nets, write_hmetis
from bandana_kv.progress import Progress

__all__ = ["Partitioner", "partition"]

_POLL_S = 0.1
_LAST_WORDS = 500  # characters of the child's output that an error repeats


@dataclass(frozen=True)
class Partitioner:
    """Which library to run, and how.

    Attributes
    ----------
    library
        ``mtkahypar`` or ``kahypar``.
    preset
        A name of the library's, or the text of a configuration file.
    name
        What progress and errors call it.
    time_limit_s
        Seconds after which it is ended; None for no limit.
    """

    library: str
    preset: str
    name: str
    imbalance: float
    seed: int
    threads: int
    time_limit_s: float | None


def partition(
    nets: Nets, blocks: int, partitioner: Partitioner, progress: Progress
) -> NDArray[np.int32]:
    """Run a partitioner in a child process.

    Parameters
    ----------
    nets
        What to partition.
    blocks
        Number of blocks, 2 or more.
    partitioner
        Which one.
    progress
        Told of each second that passes.

    Returns
    -------
    ndarray
        int32 (vertices,): the block of each vertex, 0 to blocks - 1, of any sizes.

    Raises
    ------
    PartitionerError
        It failed, ran out of time, or its answer makes no sense. In every case, Ctrl-C
        included, the child has ended and its files are removed.
    """
    with tempfile.TemporaryDirectory(prefix="bandana-partition-") as name:
        directory = Path(name)
        write_hmetis(nets, directory / "nets.hgr")
        configuration = partitioner.preset
        if partitioner.library == "kahypar":
            (directory / "kahypar.ini").write_text(configuration)
            configuration = str(directory / "kahypar.ini")
        order = child.Order(
            library=partitioner.library,
            parent=os.getpid(),
            nets=str(directory / "nets.hgr"),
            blocks_file=str(directory / "blocks"),
            configuration=configuration,
            blocks=blocks,
            imbalance=partitioner.imbalance,
            seed=partitioner.seed % 2**31,
            threads=partitioner.threads,
        )
        _run(order, directory / "output", partitioner, progress)
        return _answer(directory / "blocks", nets.vertices, blocks, partitioner.name)


def _run(order: child.Order, output: Path, partitioner: Partitioner, progress: Progress) -> None:
    # -P: the directory of the child's program must not come first on its path
    command = [sys.executable, "-P", child.__file__, json.dumps(order)]
    with open(output, "wb") as sink:
        # a process group of its own: Ctrl-C at the terminal is ours to answer
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, process_group=0
        )
    try:
        status = _wait(process, partitioner, progress)
    finally:
        process.kill()
        process.wait()
    if status != 0:
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        hint = " (out of memory?)" if status == -9 else ""
        words = output.read_text(errors="replace").strip()[-_LAST_WORDS:]
        raise PartitionerError(
            f"{partitioner.name} failed with {ended}{hint}: {words or 'it said nothing'}"
        )


def _wait(process: subprocess.Popen[bytes], partitioner: Partitioner, progress: Progress) -> int:
    """Return the child's status, telling each second; on time out raise."""
    limit = partitioner.time_limit_s
    progress.start(partitioner.name, 0 if limit is None else int(limit), "s at most")
    began = time.monotonic()
    told = 0
    while True:
        try:
            status = process.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - began
            if limit is not None and elapsed > limit:
                raise PartitionerError(
                    f"{partitioner.name} was not done after time_limit_s={limit:g}: give it "
                    "more, a faster preset, fewer pins, or take method='shp'"
                ) from None
            if int(elapsed) > told:
                progress.advance(int(elapsed) - told)
                told = int(elapsed)
        else:
            progress.finish()
            return status


def _answer(path: Path, vertices: int, blocks: int, name: str) -> NDArray[np.int32]:
    """Return what the child wrote, verified."""
    block_of_vertex = np.fromfile(path, np.int32) if path.exists() else np.empty(0, np.int32)
    if block_of_vertex.size != vertices:
        raise PartitionerError(
            f"{name} placed {block_of_vertex.size} rows, but was given {vertices}"
        )
    low, high = int(block_of_vertex.min()), int(block_of_vertex.max())
    if low < 0 or high >= blocks:
        raise PartitionerError(f"{name} named block {low if low < 0 else high} of {blocks}")
    return block_of_vertex
