"""What may be written into a store in any 24 hours, and what of that is left.

``DIR/write-budget.json``: the bytes that loads, updates and re-placements may write in
any 24 hours. What they wrote is in the ledger.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from bandana_kv.disk.ledger import DAY_S, Entry, entries, written_in_a_day, written_in_all
from bandana_kv.disk.manifest import has_store
from bandana_kv.errors import FormatError, InputError, StoreNotFoundError, WriteBudgetError
from bandana_kv.system.addresses import by_address
from bandana_kv.system.durable import disk_full_named, write_durably
from bandana_kv.system.permission import check_permission, permission_named
from bandana_kv.units import size_text

__all__ = ["Allowance", "check_budget", "room_bytes", "set_write_budget", "write_budget"]

# So seldom an allowance looks whether others have written, or the budget has changed.
_LOOK_EVERY_S = 10.0


class _Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bytes_per_day: Annotated[int, msgspec.Meta(ge=1)]


def _budget_path(root: Path) -> Path:
    return root / "write-budget.json"


@by_address()
def set_write_budget(path: str | os.PathLike[str], bytes_per_day: int | None) -> None:
    """Limit what loads and updates may write into the store at `path` in any 24 hours.

    Parameters
    ----------
    path
        The store's directory.
    bytes_per_day
        From 1 up; None for no limit, as at first.

    Raises
    ------
    StoreNotFoundError
        The path holds no store.
    InputError
        It is no number of bytes, or the store cannot be written to.
    """
    root = Path(path).absolute()
    if not has_store(root):
        raise StoreNotFoundError(f"{root} holds no store; make one with bandana_kv.load")
    if bytes_per_day is not None and (
        not isinstance(bytes_per_day, (int, np.integer))
        or isinstance(bytes_per_day, bool)
        or bytes_per_day < 1
    ):
        raise InputError(f"{bytes_per_day!r} is not a number of bytes from 1 up, nor None")
    with disk_full_named(root), permission_named():
        if bytes_per_day is None:
            _budget_path(root).unlink(missing_ok=True)
        else:
            text = msgspec.json.encode(_Budget(int(bytes_per_day)))
            write_durably(_budget_path(root), text + b"\n")


def write_budget(root: Path) -> int | None:
    """Return the bytes that may be written in 24 hours; None for no limit.

    Raises
    ------
    FormatError
        The file that says it is damaged.
    """
    path = _budget_path(root)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Budget).bytes_per_day
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        check_permission(error, path)
        raise FormatError(
            f"{path}: damaged ({error}); set the budget again with bandana_kv.set_write_budget"
        ) from error


def room_bytes(root: Path) -> float:
    """Return what is left of the budget now; infinite without one. Raises FormatError."""
    budget = write_budget(root)
    if budget is None:
        return math.inf
    return budget - written_in_all(written_in_a_day(entries(root), time.time()))


def check_budget(root: Path, wanted_bytes: int, *, now: float | None = None) -> None:
    """Refuse to write more than what is left of the store's budget.

    Parameters
    ----------
    root
        The store.
    wanted_bytes
        About what is to be handed to the engine.
    now
        Seconds since 1970; by default the clock's.

    Raises
    ------
    WriteBudgetError
        With what was written in the last 24 hours there would be more than the budget.
    FormatError
        As :func:`write_budget` and :func:`read_ledger`.

    Notes
    -----
    Cost: reads a file of a few bytes, and the ledger if there is a budget.
    """
    budget = write_budget(root)
    if budget is None:
        return
    now = time.time() if now is None else now
    lately = written_in_a_day(entries(root), now)
    written = written_in_all(lately)
    if written + wanted_bytes <= budget:
        return
    raise WriteBudgetError(
        f"{root}: {size_text(wanted_bytes)} are to be written, {size_text(written)} were in the "
        f"last 24 hours, and the budget is {size_text(budget)} a day; "
        f"{_way_out(lately, budget - wanted_bytes)}"
    )


class Allowance:
    """What a process may still write, for those who write often and little.

    Parameters
    ----------
    root
        The store.
    clock
        Seconds that only rise.

    Notes
    -----
    Counts what was taken and not given back. It looks into the store every ten seconds, and
    before it refuses.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._taken = 0
        self._room = 0.0
        self._look_at = -math.inf

    def take(self, wanted_bytes: int) -> None:
        """Take what is about to be written.

        Raises
        ------
        WriteBudgetError, FormatError
            As :func:`check_budget`; nothing was taken.
        """
        with self._lock:
            taken = self._taken + wanted_bytes
            now = self._clock()
            if taken > self._room or now >= self._look_at:
                check_budget(self._root, taken)
                self._room = room_bytes(self._root)
                self._look_at = now + _LOOK_EVERY_S
            self._taken = taken

    def give_back(self, noted_bytes: int) -> None:
        """Give back what was not written after all, or is in the ledger by now."""
        with self._lock:
            self._taken = max(0, self._taken - noted_bytes)
            self._look_at = -math.inf


def _way_out(lately: list[Entry], room_bytes: int) -> str:
    """Say when no more than `room_bytes` of the last 24 hours will be left."""
    raised = "raise it with bandana_kv.set_write_budget or tools/inspect_store.py --set-budget"
    if room_bytes < 0:
        return f"write less at once, or {raised}"
    left = written_in_all(lately)
    for entry in lately:
        left -= entry.written_bytes
        if left <= room_bytes:
            break
    when = dt.datetime.fromtimestamp(entry.time + DAY_S, dt.UTC).replace(microsecond=0)
    when += dt.timedelta(seconds=1)
    return f"there is room from {when:%Y-%m-%d %H:%M:%S} UTC on, or {raised}"
