"""What a caller got from one side, asked of the other, and compared; no caller waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bandana_kv.errors import BandanaError
from bandana_kv.metrics.quiet_log import QuietLog
from bandana_kv.rollout.comparison import Answer, Background, Differences
from bandana_kv.rollout.data import NEW, OLD, SIDES
from bandana_kv.rollout.old_source import Ids, OldRows, Rows
from bandana_kv.rollout.stages import Stages, Standing

__all__ = ["CrossCheck", "said"]


class CrossCheck:
    """Compares answers in the background; what it finds may end the stage.

    Parameters
    ----------
    old, ask_new
        The two sides.
    stages
        Told of every lookup and comparison.
    quiet
        Where it is told what could not be compared.
    threads, waiting_bytes
        As for :class:`~bandana_kv.rollout.comparison.Background`.
    """

    def __init__(
        self,
        old: OldRows,
        ask_new: Callable[..., Any],
        stages: Stages,
        quiet: QuietLog,
        threads: int,
        waiting_bytes: int,
    ) -> None:
        self._old = old
        self._ask_new = ask_new
        self._stages = stages
        self._quiet = quiet
        self.differences = Differences()
        self.background = Background(self._compare, threads, waiting_bytes)

    def later(self, now: Standing, side: int, asked: Ids, rows: Rows) -> None:
        """Have what `side` answered compared."""
        given = {name: (ids, rows[name]) for name, ids in asked.items() if ids.size}
        if given:
            self.background.offer(now.number, side, given)

    def _compare(self, answer: Answer) -> None:
        if answer.number != self._stages.now.number:
            self.background.skip()
            return
        asked = {name: ids for name, (ids, _) in answer.rows.items()}
        other = OLD if answer.side == NEW else NEW
        begun = time.perf_counter()
        try:
            found = self._old.rows(asked) if other == OLD else self._ask_new(asked)
        except Exception as error:
            self._stages.note((answer.number, other, time.perf_counter() - begun, True, False))
            self._quiet.warning(
                f"roll-out: {SIDES[other]} cannot be compared: {said(error)}",
                event="rollout_not_compared",
                side=SIDES[other],
                error=said(error),
            )
            return
        self._stages.note((answer.number, other, time.perf_counter() - begun, False, False))
        rows = mismatched = 0
        for name, (ids, given) in answer.rows.items():
            old, new = (given, found[name]) if other == NEW else (found[name], given)
            rows += ids.size
            mismatched += self.differences.count(name, ids, old, new)
        self._stages.note_compared(answer.number, rows, mismatched)


def said(error: Exception) -> str:
    """Return what an error says; of one that is not the library's, its type as well."""
    return str(error) if isinstance(error, BandanaError) else f"{type(error).__name__}: {error}"
