"""What is wrong is counted as wrong, and in the stretch of time that it belongs to."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from bandana_kv.testing.cluster_readers import Readers, rows_of, wrong_of

IDS = np.array([3, 0, 3, 900])


def test_rows_of_another_id_or_version_are_wrong() -> None:
    right = rows_of(2, IDS, 8)
    assert wrong_of(IDS, right, 1, 2) == 0
    assert wrong_of(IDS, right, 3, 4) == 4
    assert wrong_of(IDS, right, 1, 1) == 4
    assert wrong_of(IDS[::-1], right, 1, 2) == 4
    torn = right.copy()
    torn[2, 7] += 1
    assert wrong_of(IDS, torn, 1, 2) == 1
    mixed = np.concatenate([right[:3], rows_of(1, IDS[3:], 8)])
    assert wrong_of(IDS, mixed, 1, 2) == 1
    assert wrong_of(IDS[:0], right[:0], 1, 2) == 0


def test_stretches_hold_what_ended_in_them() -> None:
    what = ["right"]

    def ask(ids: NDArray[np.int64]) -> NDArray[np.int32]:
        time.sleep(0.001)
        if what[0] == "error":
            raise ValueError("no answer")
        return rows_of(1, ids, 8) + (what[0] == "wrong")

    def judge(ids: NDArray[np.int64], rows: NDArray[np.int32]) -> int:
        return wrong_of(ids, rows, 1, 1)

    with Readers(ask, judge, [IDS, IDS[:2]], threads=3) as readers:
        for name in ("wrong", "error", "right again"):
            time.sleep(0.1)
            what[0] = name
            time.sleep(0.02)  # what was asked before has ended
            readers.begin(name)
        time.sleep(0.1)
    steady, wrong, error, right = readers.stretches()
    assert steady.errors == 0
    assert steady.wrong_rows < steady.rows / 2 < wrong.rows < 2 * wrong.wrong_rows
    assert error.wrong_rows == 0
    assert error.calls / 2 < error.errors <= error.calls
    assert error.why == ("ValueError: no answer",)
    assert (right.wrong_rows, right.errors) == (0, 0)
    assert right.p50_ms >= 1
    assert right.as_dict()["rows_per_second"] > 0
