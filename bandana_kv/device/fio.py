"""Measuring with the system's fio.

The Python package of the same name, and the command ``fio`` that comes with the package
fiona, are something else; both may stand before it on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bandana_kv.device.engine import Kind, Measured, Shape
from bandana_kv.device.workfile import WorkFile
from bandana_kv.errors import InputError, MissingExtraError

__all__ = ["IO_ENGINES", "Fio", "find_fio"]

IO_ENGINES = ("io_uring", "libaio", "psync")
"""From the one that costs least to the one that always works."""

_SECONDS_TO_ANSWER = 60.0


class _Latency(msgspec.Struct):
    mean: float = 0.0
    percentile: dict[str, float] = {}


class _Side(msgspec.Struct):
    iops: float
    lat_ns: _Latency


class _Job(msgspec.Struct):
    error: int
    read: _Side
    write: _Side


class _Output(msgspec.Struct):
    jobs: list[_Job]


def find_fio() -> tuple[str, str]:
    """Return path and version of the system's fio, for example ``3.33``.

    Raises
    ------
    MissingExtraError
        There is none on PATH.
    """
    others = []
    for directory in os.get_exec_path():
        path = shutil.which("fio", path=directory)
        if path is None:
            continue
        version = _version(path)
        if version is not None:
            return path, version
        others.append(path)
    found = f" ({', '.join(others)} is another program)" if others else ""
    raise MissingExtraError(
        f"fio is not installed{found}: apt-get install fio, or your system's package of that "
        "name; the PyPI package fio is something else. Or measure with threads of Python, "
        "which reach less: --engine python (engine='python')"
    )


def _version(path: str) -> str | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.match(r"fio-(\d+\.\d\S*)", done.stdout)
    return said[1] if said else None


class Fio(NamedTuple):
    """One I/O engine of fio.

    Attributes
    ----------
    path : str
        Of the program.
    fio_version : str
    name : str
        One of `IO_ENGINES`.
    """

    path: str
    fio_version: str
    name: str

    @classmethod
    def that_works(cls, file: WorkFile, names: Sequence[str] = IO_ENGINES) -> Fio:
        """Return the first of the I/O engines that this system lets fio use.

        Containers often forbid io_uring, and fio may be built without libaio.

        Raises
        ------
        MissingExtraError
            There is no fio.
        InputError
            None of the engines works.
        """
        path, version = find_fio()
        refusals = []
        for name in names:
            fio = cls(path, version, name)
            try:
                fio.measure(file, "randread", [Shape(4096, 2, 1)], 1)
            except InputError as error:
                refusals.append(str(error))
            else:
                return fio
        raise InputError("; ".join(refusals))

    @property
    def job_counts(self) -> tuple[int, ...]:
        """One or two submitting threads; psync has one for each read in flight anyway."""
        return (1,) if self.name == "psync" else (1, 2)

    def measure(
        self, file: WorkFile, kind: Kind, shapes: Sequence[Shape], milliseconds: int
    ) -> list[Measured]:
        """Measure each shape for so long, one after the other, in one run of fio.

        Raises
        ------
        InputError
            fio failed; the message holds what it said.
        """
        command = [self.path, *_common(file, kind, self.name, milliseconds)]
        for number, shape in enumerate(shapes):
            threads = shape.depth if self.name == "psync" else shape.jobs
            command += [
                f"--name={number}",
                "--stonewall",
                f"--bs={shape.block_bytes}",
                f"--iodepth={shape.depth // threads}",
                f"--numjobs={threads}",
            ]
        seconds = _SECONDS_TO_ANSWER + len(shapes) * milliseconds / 1000
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=[file.handle],
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"fio ({self.name}) gave no answer in {seconds:.0f} s") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be run ({error.strerror})") from error
        return self._parsed(done, kind, len(shapes))

    def _parsed(
        self, done: subprocess.CompletedProcess[str], kind: Kind, count: int
    ) -> list[Measured]:
        # fio may put notes before its JSON
        notes, brace, text = done.stdout.partition("{")
        try:
            jobs = msgspec.json.decode(brace + text, type=_Output).jobs
        except msgspec.MsgspecError as error:
            raise self._failed(done, notes) from error
        if done.returncode or len(jobs) != count or any(job.error for job in jobs):
            raise self._failed(done, notes)
        return [_measured(job.read if kind == "randread" else job.write) for job in jobs]

    def _failed(self, done: subprocess.CompletedProcess[str], notes: str) -> InputError:
        said = (done.stderr or notes).strip()[:300] or "it said nothing that can be read"
        return InputError(f"fio {self.fio_version} ({self.name}) failed: {said}")


def _common(file: WorkFile, kind: Kind, engine: str, milliseconds: int) -> list[str]:
    return [
        "--output-format=json",
        f"--filename={file.path}",
        f"--size={file.bytes}",
        f"--rw={kind}",
        f"--ioengine={engine}",
        "--direct=1",
        "--time_based",
        f"--runtime={milliseconds}ms",
        "--thread",
        "--group_reporting",
        "--norandommap",
        # else each run reads the same blocks in the same order
        "--randrepeat=0",
        # from submission to completion, which is what a reader waits for
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--percentile_list=50:99",
        "--eta=never",
    ]


def _measured(side: _Side) -> Measured:
    p50, p99 = (side.lat_ns.percentile.get(f"{p}.000000", 0.0) for p in (50, 99))
    return Measured(side.iops, side.lat_ns.mean / 1e3, p50 / 1e3, p99 / 1e3)
