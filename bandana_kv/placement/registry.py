"""The methods by name, and `place`, the one way to call them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.logs.requests import RequestLog, validated_log
from bandana_kv.placement.counts import lookups_of_id, positions_of_order
from bandana_kv.placement.subset import KeptRows, resident_mask, sampled_requests, without_rows
from bandana_kv.progress import Progress
from bandana_kv.rows.files import RowSource, open_rows

__all__ = [
    "QUALITIES",
    "Job",
    "Method",
    "Values",
    "methods",
    "needs_values",
    "opened_values",
    "place",
    "register",
]

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
    values
        The rows of the table, open, or None.
    options
        What the caller asked of this method alone; every name is one that it registered.
    """

    log: RequestLog | None
    rows: int
    rows_per_block: int
    quality: str = "balanced"
    seed: int = 0
    threads: int = 1
    start: Placement | None = None
    progress: Progress = field(default_factory=Progress)
    values: RowSource | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def needed_log(self, method: str) -> RequestLog:
        """Return the log, or raise an InputError that says `method` needs one."""
        if self.log is None:
            raise InputError(f"placement method {method!r} learns from an access log: pass log=")
        return self.log

    def needed_values(self, method: str) -> RowSource:
        """Return the rows, or raise an InputError that says `method` needs them."""
        if self.values is None:
            raise InputError(
                f"placement method {method!r} looks at the rows themselves: pass values="
            )
        return self.values


Values = NDArray[Any] | str | os.PathLike[str] | RowSource
"""The rows of a table: an array (rows, dim), the path of a .npy file, or an open source."""

Method = Callable[[Job], NDArray[np.uint32]]
"""A method returns `position_of_id`, uint32 (rows,), a permutation."""

_registry: dict[str, Method] = {}
_options: dict[str, tuple[str, ...]] = {}
_by_values: set[str] = set()


def register(
    name: str, *, options: tuple[str, ...] = (), by_values: bool = False
) -> Callable[[Method], Method]:
    """Return a decorator that makes a method available as `name`.

    Parameters
    ----------
    name
        What callers say.
    options
        Keywords that :func:`place` hands on to this method.
    by_values
        Whether it learns from the rows themselves and not from a log.

    Raises
    ------
    InputError
        The name is taken.
    """

    def add(method: Method) -> Method:
        if name in _registry:
            raise InputError(f"placement method {name!r} is already registered")
        _registry[name] = method
        _options[name] = options
        if by_values:
            _by_values.add(name)
        return method

    return add


def methods() -> tuple[str, ...]:
    """Return the names that :func:`place` accepts, sorted."""
    return tuple(sorted(_registry))


def needs_values(method: str) -> bool:
    """Return whether `method` learns from the rows themselves and needs no log."""
    return method in _by_values


def _checked_options(method: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in options:
        if name not in _options[method]:
            known = ", ".join(_options[method]) or "none"
            raise InputError(
                f"placement method {method!r} has no option {name!r}; its options: {known}"
            )
    return options


@contextlib.contextmanager
def opened_values(values: Values | None, rows: int) -> Iterator[RowSource | None]:
    """Open the rows for as long as a method works; a source that is open stays so."""
    with contextlib.ExitStack() as stack:
        source = values
        if values is not None and not isinstance(values, RowSource):
            source = stack.enter_context(open_rows("values", values))
        if isinstance(source, RowSource) and source.rows != rows:
            raise InputError(f"values holds {source.rows} rows, but the table has {rows}")
        yield source if isinstance(source, RowSource) else None


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
    resident: float | NDArray[np.bool_] | None = None,
    max_pins: int | None = None,
    progress: Progress | None = None,
    values: Values | None = None,
    **options: Any,
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
        Rows that fill a block, at most 32767.
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
        An earlier placement of the same table. ``shp`` then only refines it, which is faster
        and leaves most blocks as they are; other methods ignore it.
    resident
        Rows that DRAM will hold all the time: a bool mask (rows,), or the share of the rows
        to take, the most looked up first. They do not pull other rows about, and are packed
        by popularity into the last blocks.
    max_pins
        Learn from requests drawn at random with at most so many lookups, for logs larger than
        memory; the share learned from is stated in the result. By default the whole log.
    progress
        Receives progress; by default nobody does.
    values
        The rows themselves, for methods that look at them (``kmeans``): an array (rows, dim),
        the path of a ``.npy`` file, or an open source of rows. Other methods ignore them.
    **options
        What a method offers beyond these; its documentation says. An unknown one is an error.

    Returns
    -------
    Placement
        A permutation of the rows in exactly full blocks.

    Raises
    ------
    InputError
        An unknown method, quality or option, a log with an id beyond the table, a size out of
        range.
    MissingExtraError
        The method needs a package that is not installed.
    """
    if method not in _registry:
        raise InputError(
            f"unknown placement method {method!r}; choose one of {', '.join(methods())}"
        )
    if quality not in QUALITIES:
        raise InputError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    if not 0 <= rows < 2**31:
        raise InputError(f"rows must be between 0 and 2147483647, not {rows}")
    if not 1 <= rows_per_block < 2**15:
        raise InputError(f"rows_per_block must be between 1 and 32767, not {rows_per_block}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    if start is not None and start.rows != rows:
        raise InputError(f"start places {start.rows} rows, but the table has {rows}")
    if max_pins is not None and max_pins < 1:
        raise InputError(f"max_pins must be at least 1, not {max_pins}")
    learned_from = 1.0
    if log is not None:
        validated_log(log, rows)
        if max_pins is not None and len(log.ids) > max_pins:
            lookups = len(log.ids)
            log = sampled_requests(log, rows, max_pins, seed)
            learned_from = len(log.ids) / lookups
    checked = _checked_options(method, options)
    with opened_values(values, rows) as source:
        job = Job(
            log=log,
            rows=rows,
            rows_per_block=rows_per_block,
            quality=quality,
            seed=seed,
            threads=threads or len(os.sched_getaffinity(0)),
            start=start,
            progress=progress or Progress(),
            values=source,
            options=checked,
        )
        if resident is None:
            position_of_id = _registry[method](job)
        else:
            mask = resident_mask(resident, log, rows)
            position_of_id = _placed_apart(job, _registry[method], mask)
    return Placement(position_of_id, rows_per_block, method, learned_from=learned_from)


def _placed_apart(job: Job, method: Method, resident: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Place the other rows as a table of their own, and the resident ones behind them."""
    ids = np.flatnonzero(~resident)
    resident_ids = np.flatnonzero(resident)
    log, start = job.log, job.start
    if log is not None:
        lookups = lookups_of_id(log, job.rows)[resident_ids]
        resident_ids = resident_ids[np.argsort(-lookups, kind="stable")]
        log = without_rows(log, ~resident)
    if start is not None:
        order = np.argsort(start.position_of_id[ids], kind="stable")
        start = Placement(positions_of_order(order), start.rows_per_block, start.method)
    values = None if job.values is None else KeptRows(job.values, ids)
    positions = method(replace(job, log=log, rows=ids.size, start=start, values=values))
    position_of_id = np.empty(job.rows, np.uint32)
    position_of_id[ids] = positions
    position_of_id[resident_ids] = np.arange(ids.size, job.rows, dtype=np.uint32)
    return position_of_id
