"""Those who read while a store is tortured."""

from __future__ import annotations

import threading
import traceback

import numpy as np

import bandana_kv
from bandana_kv.errors import BandanaError
from bandana_kv.testing.oracle import ROWS, TABLES, Floors
from bandana_kv.testing.tortured import Tortured

__all__ = ["Readers"]


class Readers:
    """Threads that ask a store for rows of one and of both tables, and judge the answers.

    `failing` says that calls may raise a BandanaError.
    """

    def __init__(
        self, tortured: Tortured, store: bandana_kv.EmbeddingStore, threads: int, *, failing: bool
    ) -> None:
        self._tortured = tortured
        self._store = store
        self._failing = failing
        self._over = threading.Event()
        seeds = [tortured.rng.randrange(1 << 32) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in seeds
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._over.is_set():
            self._tortured.counters.add("operations")
            try:
                self._ask_once(rng)
            except BandanaError as error:
                if not self._failing:
                    self._tortured.bad("failed_calls", f"{type(error).__name__}: {error}")
            except Exception:
                self._tortured.bad("unexpected_exceptions", traceback.format_exc())

    def _ask_once(self, rng: np.random.Generator) -> None:
        expected = self._tortured.expected
        tables = TABLES if rng.random() < 0.7 else (TABLES[rng.integers(2)],)
        asked = {table: rng.integers(0, ROWS, rng.integers(1, 30)) for table in tables}
        floors = expected.floors()
        answers = self._store.multi_get(asked)
        wrong, mixed = expected.judge(asked, answers, floors)
        if wrong or mixed:
            why = self._why(asked, answers, floors)
            self._tortured.bad("wrong_rows", why, wrong)
            self._tortured.bad("mixed_answers", why, mixed)

    def _why(
        self, asked: dict[str, np.ndarray], answers: dict[str, np.ndarray], floors: Floors
    ) -> str:
        """Return what was answered, and what was acknowledged before."""
        said = [f"asked by a thread, of {'a failing' if self._failing else 'a sound'} engine:"]
        for table, rows in answers.items():
            wrong = self._tortured.expected.wrong_rows(table, asked[table], rows, floors)
            for at in np.flatnonzero(wrong)[:3]:
                stamp = int(rows[at, 0])
                floor = floors.get((table, stamp), {asked[table][at]: None})[asked[table][at]]
                said.append(f"{table} {rows[at, :5].tolist()} for id {asked[table][at]} >= {floor}")
            said.append(f"{table} has rows of loads {sorted(set(rows[:, 0].tolist()))}")
        return "; ".join(said)
