"""The methods by name, and `place`, the one way to call them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.placement.core import Placement, RequestLog, validated_log
from bandana_kv.progress import Progress

__all__ = ["QUALITIES", "Job", "Method", "methods", "place", "register"]

QUALITIES = ("fast", "balanced", "best")


@dataclass(frozen=True)
class Job:
    """What a method is asked to do; checked before the method sees it.

    Attributes
    ----------
    log
        The access log to learn from, or None; every id is a row of the table.
    rows, rows_per_block
        Size of the table and of a block, in rows.
    quality
        How much time a better placement may cost: one of `QUALITIES`.
    seed
        Decides everything random; the same seed gives the same placement.
    threads
        Worker threads a method may use; must not change its result.
    start
        An earlier placement of the same table to begin from, or None.
    progress
        Told what has been done.
    """

    log: RequestLog | None
    rows: int
    rows_per_block: int
    quality: str = "balanced"
    seed: int = 0
    threads: int = 1
    start: Placement | None = None
    progress: Progress = field(default_factory=Progress)

    def needed_log(self, method: str) -> RequestLog:
        """Return the log, or raise an InputError that says `method` needs one."""
        if self.log is None:
            raise InputError(f"placement method {method!r} learns from an access log: pass log=")
        return self.log


Method = Callable[[Job], NDArray[np.uint32]]
"""A method returns `position_of_id`, uint32 (rows,), a permutation."""

_registry: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Return a decorator that makes a method available as `name`.

    Raises
    ------
    InputError
        The name is taken.
    """

    def add(method: Method) -> Method:
        if name in _registry:
            raise InputError(f"placement method {name!r} is already registered")
        _registry[name] = method
        return method

    return add


def methods() -> tuple[str, ...]:
    """Return the names that :func:`place` accepts, sorted."""
    return tuple(sorted(_registry))


def place(
    log: RequestLog | None,
    rows: int,
    rows_per_block: int = 32,
    method: str = "shp",
    *,
    quality: str = "balanced",
    seed: int = 0,
    threads: int | None = None,
    start: Placement | None = None,
    progress: Progress | None = None,
) -> Placement:
    """Decide which rows of a table share a block.

    Parameters
    ----------
    log
        The access log to learn from: anything with `offsets` and `ids`. None for methods that
        need none (``identity``, ``shuffled``).
    rows
        Rows of the table; ids are 0 .. rows - 1. At most 2**31 - 1.
    rows_per_block
        Rows that fill a block.
    method
        One of :func:`methods`.
    quality
        ``"fast"``, ``"balanced"`` or ``"best"``: what a better placement may cost. Methods
        without such a choice ignore it.
    seed
        Decides everything random: the same seed gives the same placement, whatever the number
        of threads.
    threads
        Worker threads, by default one for each processor this process may use.
    start
        An earlier placement of the same table to begin from.
    progress
        Receives progress; by default nobody does.

    Returns
    -------
    Placement
        A permutation of the rows in exactly full blocks.

    Raises
    ------
    InputError
        An unknown method or quality, a log with an id beyond the table, a size out of range.
    """
    if method not in _registry:
        raise InputError(
            f"unknown placement method {method!r}; choose one of {', '.join(methods())}"
        )
    if quality not in QUALITIES:
        raise InputError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    if not 0 <= rows < 2**31:
        raise InputError(f"rows must be between 0 and 2147483647, not {rows}")
    if rows_per_block < 1:
        raise InputError(f"rows_per_block must be at least 1, not {rows_per_block}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    if start is not None and start.rows != rows:
        raise InputError(f"start places {start.rows} rows, but the table has {rows}")
    if log is not None:
        validated_log(log, rows)
    job = Job(
        log=log,
        rows=rows,
        rows_per_block=rows_per_block,
        quality=quality,
        seed=seed,
        threads=threads or len(os.sched_getaffinity(0)),
        start=start,
        progress=progress or Progress(),
    )
    return Placement(_registry[method](job), rows_per_block, method)
