"""What measures: the interface of fio and of its stand-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from bandana_kv.device.workfile import WorkFile

__all__ = ["Engine", "Kind", "Measured", "Shape"]

Kind = Literal["randread", "write", "randwrite"]


class Shape(NamedTuple):
    """Reads or writes of one size, `depth` in flight over all of `jobs`."""

    block_bytes: int
    depth: int
    jobs: int


class Measured(NamedTuple):
    """What a shape reached once."""

    per_second: float
    mean_us: float
    p50_us: float
    p99_us: float


class Engine(Protocol):
    """Measures shapes on a file."""

    @property
    def name(self) -> str:
        """As the profile says it."""
        ...

    @property
    def fio_version(self) -> str | None:
        """Of fio, or None."""
        ...

    @property
    def job_counts(self) -> tuple[int, ...]:
        """The numbers of jobs that make a difference."""
        ...

    def measure(
        self, file: WorkFile, kind: Kind, shapes: Sequence[Shape], milliseconds: int
    ) -> list[Measured]:
        """Measure each shape for so long, one after the other."""
        ...
