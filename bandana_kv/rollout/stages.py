"""The stage of a roll-out: who changes it, where that is told, and where it is kept."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bandana_kv.errors import RolloutError
from bandana_kv.metrics.quiet_log import QuietLog
from bandana_kv.rollout.data import (
    STAGES,
    Shares,
    Stage,
    Transition,
    checked_share,
    checked_stage,
)
from bandana_kv.rollout.observations import Breach, Lookup, Observed
from bandana_kv.rollout.state import read_state, write_state

__all__ = ["Stages", "Standing"]

_log = logging.getLogger("bandana_kv")
_REMEMBERED = 100


@dataclass(frozen=True)
class Standing:
    """The stage that calls begin in; replaced as a whole.

    Attributes
    ----------
    number : int
        Rises with every transition.
    stage : str
    fraction : float
        Of the requests that go to the new store while the stage is canary.
    compared : float
        Share of the requests that both sides answer.
    since : float
        When it began, in seconds since 1970.
    reason : str
    """

    number: int
    stage: Stage
    fraction: float
    compared: float
    since: float
    reason: str


class Stages:
    """Goes from stage to stage; safe to use from many threads.

    Parameters
    ----------
    stage, fraction
        Where to begin, if nothing is written at `path`.
    shares
        Which share of the requests is compared in each stage.
    observed
        What is seen; begins anew with each stage.
    path
        Where the stage is kept; None: nowhere.
    """

    def __init__(
        self, stage: Stage, fraction: float, shares: Shares, observed: Observed, path: Path | None
    ) -> None:
        self._shares = shares
        self._observed = observed
        self._path = path
        self._history: deque[Transition] = deque(maxlen=_REMEMBERED)
        self._counts: Counter[tuple[Stage, Stage]] = Counter()
        stage, fraction = checked_stage(stage), checked_share("fraction", fraction)
        reason = "asked to begin so"
        written = None if path is None else read_state(path)
        if written is not None:
            stage, fraction = written.stage, written.fraction
            reason = f"{path} says so ({written.reason})"
        self.now = Standing(0, stage, fraction, shares.of(stage), time.time(), reason)
        self._begin()
        _log.info(
            "roll-out: begins in %s: %s",
            stage,
            reason,
            extra={"event": "rollout_begun", "stage": stage, "reason": reason},
        )

    def _begin(self) -> None:
        self._changing = threading.Lock()
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None
        self._quiet = QuietLog()

    def after_fork_in_child(self) -> None:
        """Go on in the stage of the parent, whose threads are not here."""
        self._begin()

    @property
    def history(self) -> tuple[Transition, ...]:
        """The last hundred transitions, the newest last."""
        return tuple(self._history.copy())

    @property
    def counts(self) -> dict[tuple[Stage, Stage], int]:
        """How many transitions there were, by the stages before and after."""
        return dict(self._counts.copy())

    def why_not(self) -> str:
        """Return what keeps :meth:`advance` from going on; empty: nothing."""
        stage = self.now.stage
        if stage == STAGES[-1]:
            return f"{stage} is the last stage"
        return "" if stage == "off" else self._observed.why_not()

    def advance(self, fraction: float | None) -> None:
        """Go to the next stage."""
        fraction = self._checked(fraction)
        with self._changing:
            now = self.now
            missing = self.why_not()
            if missing:
                raise RolloutError(
                    f"the roll-out stays in {now.stage}: {missing}; wait, compare a larger share, "
                    "see report(), or go with set_stage() all the same"
                )
            following = STAGES[STAGES.index(now.stage) + 1]
            done = self._go(following, fraction, "it was good enough to advance", False)
        _tell(done)
        self._save()

    def set(self, stage: Stage, fraction: float | None, reason: str) -> None:
        """Go to any stage."""
        stage, fraction = checked_stage(stage), self._checked(fraction)
        with self._changing:
            done = self._go(stage, fraction, reason, False)
        _tell(done)
        self._save()

    def note(self, lookup: Lookup) -> None:
        """Count a lookup of one side, and step back if a limit is broken by now."""
        breach = self._observed.note(lookup)
        if breach is not None:
            self.step_back(breach)

    def note_compared(self, number: int, rows: int, mismatched: int) -> None:
        """Count a comparison of stage `number`, and step back if a limit is broken by now."""
        breach = self._observed.note_compared(number, rows, mismatched)
        if breach is not None:
            self.step_back(breach)

    def step_back(self, breach: Breach) -> None:
        """Go back to shadow, if the limit was broken in the stage that is now.

        The caller is somebody who wants rows: a thread of its own writes the stage down.
        """
        number, reason = breach
        if self.now.number == number and self.now.stage not in ("canary", "full"):
            stage = self.now.stage
            self._quiet.warning(
                f"roll-out: stays in {stage}: {reason}",
                event="rollout_breach",
                stage=stage,
                reason=reason,
            )
            return
        with self._changing:
            if self.now.number != number:
                return
            done = self._go("shadow", None, reason, True)
        _tell(done)
        if self._path is not None:
            writer = threading.Thread(
                target=self._save_or_log, name="bandana-kv-stage", daemon=True
            )
            try:
                writer.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._save_or_log()
            else:
                self._writer = writer

    def _checked(self, fraction: float | None) -> float | None:
        return None if fraction is None else checked_share("fraction", fraction)

    def _go(self, stage: Stage, fraction: float | None, reason: str, automatic: bool) -> Transition:
        before = self.now
        fraction = before.fraction if fraction is None else fraction
        done = Transition(
            time.time(), before.stage, stage, fraction, reason, automatic, self._observed.seen()
        )
        # First what is judged, then what is done: of a stage's lookups none goes unjudged.
        self._observed.begin(before.number + 1)
        self.now = Standing(
            before.number + 1, stage, fraction, self._shares.of(stage), done.time, reason
        )
        self._history.append(done)
        self._counts[before.stage, stage] += 1
        return done

    def _save(self) -> None:
        """Write down which stage it is by now; of several who do, the last one is right."""
        if self._path is not None:
            with self._writing:
                now = self.now
                write_state(self._path, now.stage, now.fraction, now.since, now.reason)

    def _save_or_log(self) -> None:
        try:
            self._save()
        except Exception:
            _log.exception(
                "roll-out: a step back was not written down",
                extra={"event": "rollout_not_written", "path": str(self._path)},
            )

    def wait(self) -> None:
        """Wait until what was stepped back is written down."""
        writer = self._writer
        if writer is not None:
            writer.join()


def _tell(done: Transition) -> None:
    _log.log(
        logging.WARNING if done.automatic else logging.INFO,
        "roll-out: %s -> %s: %s",
        done.before,
        done.after,
        done.reason,
        extra={
            "event": "rollout_stage",
            "from": done.before,
            "to": done.after,
            "fraction": done.fraction,
            "automatic": done.automatic,
            "reason": done.reason,
            "numbers": msgspec.to_builtins(done.seen),
        },
    )
