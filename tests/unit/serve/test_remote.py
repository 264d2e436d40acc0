"""Blocks on other machines: one that is down keeps nobody from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.contract import Capabilities, Keys, Payloads
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.care.verification import verify
from bandana_kv.device.record import DeviceProfile
from bandana_kv.errors import InputError, NodeError

PER_BLOCK = 31
BLOCKS = 64
ROWS = np.random.default_rng(3).random((PER_BLOCK * BLOCKS, 32), np.float32)


class Elsewhere(MemoryAdapter):
    """On two nodes: one has the even blocks, the other the odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.calls = 0
        self.bad_copies: set[int] = set()

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, remote=True, queue_depth="call")

    def read_each(self, keys: Keys, out: Payloads) -> dict[int, Exception]:
        self.calls += 1
        lost = np.flatnonzero(keys % np.uint64(2)) if self.down else []
        errors: dict[int, Exception] = {
            int(at): NodeError("memory: n2:7000 is down", "n2:7000") for at in lost
        }
        there = np.setdiff1d(np.arange(len(keys)), lost)
        out[there] = self.multi_get(keys[there])
        return errors

    def read_every_copy(self, keys: Keys, check: Callable[[str, Keys, Payloads], None]) -> int:
        payloads = self.multi_get(keys)
        check("n1:7000", keys, payloads)
        for at, key in enumerate(keys.tolist()):
            payloads[at, 100] ^= key & ((1 << 40) - 1) in self.bad_copies
        check("n3:7000", keys, payloads)
        return 2


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    adapter = Elsewhere()
    bandana_kv.load(tmp_path / "store", {"t": ROWS}, adapter=adapter)
    return adapter


def ids_of(blocks: list[int]) -> np.ndarray:
    return np.array([PER_BLOCK * block + 5 for block in blocks])


def test_what_one_node_lacks_is_not_read_again_and_named(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    with bandana_kv.open(tmp_path / "store", cache_bytes=1 << 16, adapter=elsewhere) as store:
        elsewhere.down = True
        elsewhere.calls = 0
        with pytest.raises(NodeError, match=r"^table 't', block 1: memory: n2:7000 is down") as it:
            store.multi_get("t", ids_of(list(range(40))))
        assert elsewhere.calls == 1
        assert it.value.node == "n2:7000"
        np.testing.assert_array_equal(
            store.multi_get("t", ids_of([2, 4, 50])), ROWS[ids_of([2, 4, 50])]
        )


@pytest.mark.parametrize("deadline_ms", [None, 5000.0])
def test_the_rows_of_a_node_that_is_down_come_from_the_fallback_and_no_others(
    elsewhere: Elsewhere, tmp_path: Path, deadline_ms: float | None
) -> None:
    asked: list[np.ndarray] = []

    def fallback(table: str, ids: np.ndarray) -> np.ndarray:
        asked.append(ids)
        return ROWS[ids]

    opened = bandana_kv.open(
        tmp_path / "store",
        cache_bytes=1 << 12,
        adapter=elsewhere,
        fallback=fallback,
        deadline_ms=deadline_ms,
    )
    with opened as store:
        elsewhere.down = True
        rng = np.random.default_rng(0)
        for _ in range(60):
            ids = ids_of(rng.choice(BLOCKS, 10).tolist())
            np.testing.assert_array_equal(store.multi_get("t", ids), ROWS[ids])
        assert asked
        assert all((ids // PER_BLOCK % 2 == 1).all() for ids in asked)
        counts = store.stats()["t"]
        assert (counts["breaker_open"], counts["breaker_openings"]) == (0, 0)
        assert counts["bad_blocks"] > 60
        asked.clear()
        elsewhere.down = False
        for block in range(1, BLOCKS, 2):  # nothing rests: it is read at once
            store.multi_get("t", ids_of([block]))
        assert not asked


def test_updates_are_refused(elsewhere: Elsewhere, tmp_path: Path) -> None:
    with bandana_kv.open(tmp_path / "store", cache_bytes=1 << 16, adapter=elsewhere) as store:
        uses: list[Callable[[], object]] = [
            lambda: store.update("t", [1], ROWS[:1]),
            store.flush,
        ]
        for use in uses:
            with pytest.raises(InputError, match="takes versions instead of updates; load a new"):
                use()
        np.testing.assert_array_equal(store.multi_get("t", [1]), ROWS[1:2])


def test_no_device_of_this_machine_is_meant(tmp_path: Path) -> None:
    profile = DeviceProfile.read  # any: it is refused before it is looked at
    with pytest.raises(InputError, match="a profile is of a device of this machine"):
        bandana_kv.load(
            tmp_path / "store",
            {"t": ROWS},
            adapter=Elsewhere(),
            profile=profile,  # type: ignore[arg-type]
        )
    adapter = Elsewhere()
    bandana_kv.load(tmp_path / "store", {"t": ROWS}, adapter=adapter)
    bandana_kv.set_write_budget(tmp_path / "store", 1000)
    bandana_kv.load(tmp_path / "store", {"t": ROWS}, adapter=adapter)


def test_verification_looks_at_every_copy(elsewhere: Elsewhere, tmp_path: Path) -> None:
    assert verify(tmp_path / "store", adapter=elsewhere).bad_blocks == 0
    elsewhere.bad_copies = {7, 30}
    report = verify(tmp_path / "store", adapter=elsewhere)
    assert report.bad_blocks == 2
    assert [finding.block for finding in report.findings] == [7, 30]
    assert all("at n3:7000" in finding.message for finding in report.findings)
