"""What serving code holds while it moves: rows from the old source, the new store, or both."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import BandanaError, IdError, InputError
from bandana_kv.metrics import Metric
from bandana_kv.metrics.quiet_log import QuietLog
from bandana_kv.rollout.canary import chosen, key_bytes, request_bytes
from bandana_kv.rollout.cross_check import CrossCheck, said
from bandana_kv.rollout.data import NEW, OLD, Limits, Report, Shares, Stage
from bandana_kv.rollout.metrics import metrics_of, report_of
from bandana_kv.rollout.nested import answer_nested, is_nested
from bandana_kv.rollout.observations import Observed
from bandana_kv.rollout.old_source import Ids, OldRows, Rows
from bandana_kv.rollout.stages import Stages, Standing
from bandana_kv.rows.source import source_of
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.system.forks import at_fork

__all__ = ["Rollout"]


class Rollout:
    """Answers lookups as a store does, from the old source, the new store, or both, by stages.

    ======== ==================================================================================
    stage    what happens
    ======== ==================================================================================
    off      The old source answers.
    shadow   The old source answers. A share of the requests is also asked of the new store, in
             the background, and compared row by row.
    canary   The new store answers a fraction of the requests, always the same ones. A share of
             these is also asked of the old source, in the background, and compared.
    full     The new store answers. A share is compared as in canary.
    ======== ==================================================================================

    What the new store cannot answer, or not in time, is answered from the old source. When it
    goes beyond `limits` in canary or full, the stage is shadow from then on. Forward goes only
    who calls :meth:`advance` or :meth:`set_stage`. Safe to use from many threads.

    Parameters
    ----------
    old
        As `fallback` of :func:`bandana_kv.open`: an open store, rows by key in an engine, a
        function ``(table, ids)`` that returns (n, dim), or one of these by table name. Its rows
        must have the dtype and length of the new store's. It may be called by several threads.
    new
        The store, opened without a fallback, so that its failures are seen; with `deadline_ms`,
        or callers in canary and full wait for a device that hangs.
    stage, fraction
        What to begin with where nothing is written at `state`.
    shares
        Which share of the requests is compared.
    limits
        What the new store may do.
    state
        A file to keep the stage in. If it is there, its stage is begun with: a process that
        starts again does not jump ahead of a step back.
    threads
        That compare. They are of this process, and take time from its interpreter.
    waiting_bytes
        Bytes of answers that wait to be compared. What does not fit is not compared, and counted.

    Raises
    ------
    InputError
        An argument is wrong.
    FormatError
        What is at `state` is no stage of a roll-out.

    Notes
    -----
    Tables, and the shapes of their rows, are those of the new store now. A forked child goes on
    in the stage of its parent, with windows and threads of its own.
    """

    def __init__(
        self,
        old: object,
        new: EmbeddingStore,
        *,
        stage: Stage = "off",
        fraction: float = 0.05,
        shares: Shares | None = None,
        limits: Limits | None = None,
        state: str | os.PathLike[str] | None = None,
        threads: int = 2,
        waiting_bytes: int = 16 << 20,
    ) -> None:
        if new.has_fallback:
            raise InputError(
                "open the new store without fallback=: what it would answer from there would "
                "not be seen, and the roll-out answers from the old source itself"
            )
        for name, count in (("threads", threads), ("waiting_bytes", waiting_bytes)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"{name} {count!r} is not a whole number from 1 up")
        self._old = OldRows(source_of(old), new)
        self._ask_new: Callable[..., Any] = new.multi_get
        self._observed = Observed(limits or Limits())
        self._stages = Stages(
            stage,
            fraction,
            shares or Shares(),
            self._observed,
            None if state is None else Path(state).absolute(),
        )
        self._quiet = QuietLog()
        self._check = CrossCheck(
            self._old, self._ask_new, self._stages, self._quiet, threads, waiting_bytes
        )
        self._random = random.Random()
        self._closed = False
        with _rollouts_lock:
            _rollouts.add(self)

    def after_fork_in_child(self) -> None:
        """Go on in the stage of the parent, without its threads."""
        self._observed.after_fork_in_child()
        self._stages.after_fork_in_child()
        self._check.background.after_fork_in_child()
        self._random.seed()
        self._quiet.after_fork_in_child()

    @property
    def stage(self) -> Stage:
        """The stage that calls begin in now."""
        return self._stages.now.stage

    @property
    def fraction(self) -> float:
        """The fraction of the requests that go to the new store while the stage is canary."""
        return self._stages.now.fraction

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return self._old.tables

    def get(self, table: str, id: int, *, key: str | bytes | int | None = None) -> NDArray[Any]:
        """Return the row of one id: (dim,). As :meth:`multi_get`."""
        row: NDArray[Any] = self.multi_get(table, [id], key=key)[0]
        return row

    @overload
    def multi_get(
        self,
        table: str,
        ids: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        key: str | bytes | int | None = None,
    ) -> NDArray[Any]: ...

    @overload
    def multi_get(
        self, table: Mapping[str, ArrayLike], *, key: str | bytes | int | None = None
    ) -> dict[str, NDArray[Any]]: ...

    def multi_get(
        self,
        table: str | Mapping[str, ArrayLike],
        ids: ArrayLike | None = None,
        *,
        out: NDArray[Any] | None = None,
        key: str | bytes | int | None = None,
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Return rows as :meth:`EmbeddingStore.multi_get` does.

        Parameters
        ----------
        table, ids, out
            As there.
        key
            Whose request it is, a user's for example: in canary all requests with one key go to
            the same side. By default all with the same ids do.

        Raises
        ------
        TableNotFoundError, IdError, InputError
            As there. An id is out of range if neither side has it.
        FallbackError, RowMissingError
            The old source could not answer; and if the new store was asked, neither could that.

        Notes
        -----
        A request for several tables goes to one side as a whole.

        Cost: in full, some microseconds beside the new store's lookup; in the other stages what the
        old source takes. A request that is compared is copied, and asked of the other side by a
        thread in the background.
        """
        if self._closed:
            raise InputError("the roll-out is closed")
        if is_nested(table, ids):
            return answer_nested(partial(self.multi_get, key=key), table, ids, out)
        now = self._stages.now
        whose = None if key is None else key_bytes(key)
        asked: Ids | None = None
        if now.stage != "full":
            asked = self._old.checked(table, ids, out)
            if now.stage != "canary" or not chosen(whose or request_bytes(asked), now.fraction):
                return self._from_old(now, table, asked, out)
        begun = time.perf_counter()
        try:
            answer: NDArray[Any] | Rows = self._ask_new(table, ids, out=out)
        except Exception as error:
            seconds = time.perf_counter() - begun
            asked = asked or self._old.checked(table, ids, out)
            return self._rescued(now, table, asked, out, error, seconds)
        self._stages.note((now.number, NEW, time.perf_counter() - begun, False, True))
        if now.compared and self._random.random() < now.compared:
            asked = asked or self._old.checked(table, ids, out)
            rows = answer if isinstance(answer, dict) else dict.fromkeys(asked, answer)
            self._check.later(now, NEW, asked, rows)
        return answer

    def _from_old(
        self, now: Standing, table: str | Mapping[str, ArrayLike], asked: Ids, out: Any
    ) -> NDArray[Any] | Rows:
        begun = time.perf_counter()
        try:
            rows = self._old.rows(asked)
        except IdError:
            raise
        except BandanaError:
            self._stages.note((now.number, OLD, time.perf_counter() - begun, True, False))
            self._observed.count("failed_requests")
            raise
        self._stages.note((now.number, OLD, time.perf_counter() - begun, False, True))
        if now.stage == "shadow" and self._random.random() < now.compared:
            self._check.later(now, OLD, asked, rows)
        return _as_asked(table, rows, out)

    def _rescued(
        self,
        now: Standing,
        table: str | Mapping[str, ArrayLike],
        asked: Ids,
        out: Any,
        why: Exception,
        seconds: float,
    ) -> NDArray[Any] | Rows:
        """Answer from the old source what the new store did not."""
        begun = time.perf_counter()
        try:
            rows = self._old.rows(asked)
        except IdError:
            raise
        except BandanaError as error:
            self._stages.note((now.number, NEW, seconds, True, False))
            self._stages.note((now.number, OLD, time.perf_counter() - begun, True, False))
            self._observed.count("failed_requests")
            raise type(error)(f"{said(why)}; and the old source: {error}") from why
        self._stages.note((now.number, NEW, seconds, True, False))
        self._stages.note((now.number, OLD, time.perf_counter() - begun, False, True))
        self._observed.count("rescued_requests")
        self._quiet.warning(
            f"roll-out: {said(why)}; answered from the old source",
            event="rollout_rescued",
            why=said(why),
        )
        return _as_asked(table, rows, out)

    def advance(self, fraction: float | None = None) -> Stage:
        """Go to the next stage, if this one has been good for long enough, and return it.

        Parameters
        ----------
        fraction
            Of the requests that go to the new store in canary; by default as it is.

        Raises
        ------
        RolloutError
            Fewer than `Limits.least` comparisons were good, a limit is broken, or the stage is
            full; nothing has changed. Or the stage could not be written down; then it has.
        InputError
            `fraction` is none, or the roll-out is closed.

        Notes
        -----
        From off to shadow goes whoever asks. Counting begins anew with each stage.
        """
        self._open()
        self._stages.advance(fraction)
        return self.stage

    def set_stage(
        self, stage: Stage, fraction: float | None = None, *, reason: str = "set by hand"
    ) -> None:
        """Go to a stage, whatever was seen; also to another fraction within canary.

        Parameters
        ----------
        stage
            ``"off"``, ``"shadow"``, ``"canary"`` or ``"full"``.
        fraction
            As for :meth:`advance`.
        reason
            For logs and history.

        Raises
        ------
        InputError
            An argument is wrong, or the roll-out is closed.
        RolloutError
            The stage is changed, but could not be written down.

        Notes
        -----
        Calls that have begun end as they began.
        """
        self._open()
        self._stages.set(stage, fraction, str(reason))

    def report(self) -> Report:
        """Return how it stands. Cost: no reads of rows."""
        return report_of(
            self._stages,
            self._observed,
            self._check.background.skipped,
            self._check.differences.kept(),
        )

    def metrics(self) -> Iterable[Metric]:
        """Return counts, latencies and the stage as metrics. Cost: no reads of rows."""
        return metrics_of(self.report(), self._observed.latencies(), self._stages.counts)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is left to compare, at most so long; return whether that came."""
        done = self._check.background.wait(seconds)
        if done:
            self._stages.wait()
        return done

    def close(self) -> None:
        """Wait for comparisons that have begun, and end. Both sides stay their owner's."""
        self._closed = True
        self._check.background.stop()
        self._stages.wait()

    def _open(self) -> None:
        if self._closed:
            raise InputError("the roll-out is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_asked(table: object, rows: Rows, out: NDArray[Any] | None) -> NDArray[Any] | Rows:
    if not isinstance(table, str):
        return rows
    if out is None:
        return rows[table]
    out[...] = rows[table]
    return out


_rollouts_lock = threading.Lock()
_rollouts: weakref.WeakSet[Rollout] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _rollouts_lock.release()
    for rollout in _rollouts:
        rollout.after_fork_in_child()


at_fork(
    "rollouts",
    before=_rollouts_lock.acquire,
    in_parent=_rollouts_lock.release,
    in_child=_after_fork_in_child,
)
