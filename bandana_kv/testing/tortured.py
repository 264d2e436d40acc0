"""The state of a torture: what the store must hold, and what was found that must not be."""

from __future__ import annotations

import mmap
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bandana_kv.testing.oracle import Event, Expected

__all__ = ["BAD", "COUNTS", "Tell", "Tortured"]

BAD = (
    "wrong_rows",
    "lost_versions",
    "mixed_answers",
    "unexpected_exceptions",
    "failed_calls",
    "unsound_stores",
    "litter",
)
"""What must be zero. The last three: calls that failed though nothing was injected, stores in
which ``verify`` found something, and files that no load removed."""

COUNTS = ("kills", "faults", "operations", *BAD)
_SHOWN = 20

Tell = Callable[[Event], None]


class _Counters:
    """Counters that outlive the children that raise them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(COUNTS))
        self._values = np.frombuffer(self._memory, np.int64)
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._values[COUNTS.index(name)] += count

    def as_dict(self) -> dict[str, int]:
        return dict(zip(COUNTS, self._values.tolist(), strict=True))


class Tortured:
    """A store that is tortured, seen from any process: the parent keeps it, children tell."""

    def __init__(self, root: Path, seed: int, adapter: str) -> None:
        self.root = root
        self.adapter = adapter
        self.rng = random.Random(seed)
        self.expected = Expected()
        self.counters = _Counters()
        self.reasons: list[str] = []
        self.acknowledged: Counter[str] = Counter()
        self.tell: Tell | None = None

    def bad(self, what: str, why: str, count: int = 1) -> None:
        """Count what must not be; in a child, by telling the parent."""
        if self.tell is not None:
            self.tell({"bad": what, "why": why[-600:], "count": count})
            return
        self.counters.add(what, count)
        shown = sum(reason.startswith(what) for reason in self.reasons)
        if count and shown < _SHOWN:
            self.reasons.append(f"{what}: {why}")
