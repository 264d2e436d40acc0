"""What a table does about blocks that do not come: deadline, fallback, counts and logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    DeadlineError,
    FallbackError,
    InputError,
    RowMissingError,
)
from bandana_kv.metrics.quiet_log import QuietLog
from bandana_kv.rows.source import Source, rows_of
from bandana_kv.serve.breaker import Breaker
from bandana_kv.serve.reader import Errors

__all__ = ["Deadline", "FailSafe", "checked_deadline"]


@dataclass(frozen=True)
class Deadline:
    """When a call has waited long enough."""

    milliseconds: float
    at: float

    @staticmethod
    def after(milliseconds: float) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline(milliseconds, time.monotonic() + milliseconds / 1000)

    def left(self) -> float:
        """Return the seconds that are left, 0 once it has passed."""
        return max(0.0, self.at - time.monotonic())

    def missed(self, table: str, blocks: int) -> DeadlineError:
        """Return the error for a call with `blocks` outstanding."""
        return DeadlineError(
            f"table {table!r}: {blocks} blocks did not arrive within {self.milliseconds:g} ms; "
            "ask again, allow more with deadline_ms=, or name a fallback="
        )


def checked_deadline(deadline_ms: float | None) -> float | None:
    """Return a deadline that a caller named.

    Raises
    ------
    InputError
        It is not a positive number.
    """
    if deadline_ms is None:
        return None
    number = isinstance(deadline_ms, (int, float, np.integer, np.floating))
    if not number or isinstance(deadline_ms, bool) or not 0 < deadline_ms < float("inf"):
        raise InputError(f"deadline_ms {deadline_ms!r} is not a positive number")
    return float(deadline_ms)


class FailSafe:
    """Answers the rows of bad blocks from a fallback, and keeps count; safe to share.

    Without a fallback it counts, and there is no circuit breaker: an error is all that a
    caller could be given instead of a read. Nor is there one where blocks are `remote`: that
    would be of the table, and keep the blocks of all nodes from being read for the sake of one.
    There the adapter breaks the circuit node by node: it does not ask who is down, so that blocks
    which only such nodes have fail at once, and it tries now and then whether they are back.

    Parameters
    ----------
    table
        Its name.
    source
        The fallback.
    breaker
        Of the table; by default a new one.
    remote
        Blocks lie on several machines.
    """

    def __init__(
        self,
        table: str,
        source: Source | None = None,
        breaker: Breaker | None = None,
        *,
        remote: bool = False,
    ) -> None:
        self._table = table
        self._source = source
        self._breaker = None
        if source is not None and not remote:
            self._breaker = breaker or Breaker(f"table {table!r}")
        self._log = QuietLog()
        self._lock = threading.Lock()
        self._counts = {"bad_blocks": 0, "late_blocks": 0, "fallback_rows": 0}

    @property
    def breaks(self) -> bool:
        """Whether there is a breaker, so that :meth:`allowed` must be asked."""
        return self._breaker is not None

    def allowed(self, blocks: int) -> int:
        """Return how many of `blocks` may be read."""
        return blocks if self._breaker is None else self._breaker.allowed(blocks)

    def went_well(self) -> None:
        """Hear of a request whose blocks all came."""
        if self._breaker is not None:
            self._breaker.succeeded()

    @property
    def resting(self) -> bool:
        """Whether the breaker keeps requests from reading."""
        return self._breaker is not None and self._breaker.state != "closed"

    def went_wrong(self, errors: Errors) -> None:
        """Hear of blocks that did not come.

        Damaged or missing blocks are no sign of a device gone bad: they stay as they are, and
        the others go on being read.
        """
        late = sum(isinstance(error, DeadlineError) for error in errors.values())
        with self._lock:
            self._counts["late_blocks"] += late
            self._counts["bad_blocks"] += len(errors) - late
        if self._breaker is not None:
            device = any(isinstance(e, (AdapterError, DeadlineError)) for e in errors.values())
            if device:
                self._breaker.failed()
            else:
                self._breaker.succeeded()

    def answer(
        self, errors: Mapping[int, BandanaError], ids: NDArray[Any], rows: NDArray[Any]
    ) -> NDArray[Any]:
        """Return the rows of `ids` (n,) from the fallback, of the shape and dtype of `rows`.

        Raises
        ------
        BlockCorruptError, BlockMissingError, AdapterError, DeadlineError
            There is no fallback.
        RowMissingError, FallbackError
            The fallback cannot answer either; says why it was asked.
        """
        if self._source is None:
            raise _worst(errors)
        why = str(_worst(errors)) if errors else f"table {self._table!r}: the breaker is open"
        try:
            answer = rows_of(self._source, self._table, ids, rows.shape[1], rows.dtype)
        except (FallbackError, RowMissingError) as error:
            raise type(error)(f"{why}; and the fallback: {error}") from error
        with self._lock:
            self._counts["fallback_rows"] += ids.size
        self._log.warning(
            f"{why}; {ids.size} rows came from the fallback",
            event="fallback_answered",
            table=self._table,
            rows=ids.size,
            why=why,
        )
        return answer

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was counting."""
        self._lock = threading.Lock()
        self._log.after_fork_in_child()
        if self._breaker is not None:
            self._breaker.after_fork_in_child()

    def stats(self) -> dict[str, int]:
        """Return what was counted, and how the breaker stands."""
        with self._lock:
            counts = dict(self._counts)
        counts["breaker_open"] = int(self.resting)
        counts["breaker_openings"] = 0 if self._breaker is None else self._breaker.openings
        return counts


def _worst(errors: Mapping[int, BandanaError]) -> BandanaError:
    """Return what to say of several: of the lowest block; lateness last, as it may pass."""
    of_block = min(errors, key=lambda block: (isinstance(errors[block], DeadlineError), block))
    return errors[of_block]
