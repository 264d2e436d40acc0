"""Forks at bad moments: a child follows its parent, and keeps nobody out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.care.drift.stores import served_table
from bandana_kv.disk import ledger
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import InputError
from bandana_kv.placement import Placement
from bandana_kv.serve.following import Follower, replay

ROWS, DIM = 2000, 16
ADAPTERS = ("blockfile", "lmdb", "rocksdb")


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.random((ROWS, DIM), dtype=np.float32)


def shuffled(store: bandana_kv.EmbeddingStore, seed: int) -> Placement:
    served = store.placement("t")
    positions = np.random.default_rng(seed).permutation(ROWS).astype(np.uint32)
    return Placement(positions, served.rows_per_block, "shuffled")


def in_child(work: Callable[[], bool]) -> tuple[int, Callable[[], bool]]:
    """Fork; the child begins when the second result is called, which says whether it was well."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(write)
            os.read(read, 1)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    os.close(read)

    def finish() -> bool:
        os.close(write)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return child, finish


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("first", ["place_anew", "update", "nothing"])
def test_a_child_follows_what_its_parent_places_anew(
    tmp_path: Path, rows: np.ndarray, adapter: str, first: str
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter=adapter)
    with bandana_kv.open(tmp_path / "s", cache_bytes=10_000) as store:
        if first == "place_anew":
            store.place_anew("t", shuffled(store, 1))
        if first == "update":
            store.update("t", [1], rows[1:2])
            store.flush()

        def work() -> bool:
            store.refresh()
            right = np.array_equal(store.multi_get("t", np.arange(ROWS)), rows)
            store.refresh(warm_seconds=0)
            return right and np.array_equal(store.multi_get("t", np.arange(ROWS)), rows)

        _, finish = in_child(work)
        store.place_anew("t", shuffled(store, 2))
        assert finish()
        assert np.array_equal(store.multi_get("t", np.arange(ROWS)), rows)


def test_a_child_keeps_no_lock_of_its_parent(tmp_path: Path, rows: np.ndarray) -> None:
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter="lmdb")
    with writer_lock(tmp_path / "s"), ledger._appending(tmp_path / "s" / "ledger.jsonl"):
        _, finish = in_child(lambda: True)
    # The child lives; neither a load nor a line of the ledger waits for it.
    assert bandana_kv.load(tmp_path / "s", {"t": rows}, adapter="lmdb") == 2
    assert finish()


def test_updates_that_went_into_blocks_while_they_were_replayed_are_noticed(
    tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter="blockfile")
    with bandana_kv.open(tmp_path / "s") as writer, bandana_kv.open(tmp_path / "s") as reader:
        writer.update("t", [7], -rows[7:8])

        def late(*arguments: object) -> None:
            monkeypatch.setattr("bandana_kv.serve.following.replay", replay)
            writer.flush()
            replay(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("bandana_kv.serve.following.replay", late)
        reader.refresh()
        assert np.array_equal(reader.get("t", 7), -rows[7])
        assert not Follower(tmp_path / "s").has_news()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_drift_sees_the_placement_that_is_served(
    tmp_path: Path, rows: np.ndarray, adapter: str
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter=adapter)
    with bandana_kv.open(tmp_path / "s") as store:
        for seed in range(2):
            placed = shuffled(store, seed)
            store.place_anew("t", placed)
            found = served_table(tmp_path / "s", "t", cache_bytes=10_000).placement
            assert np.array_equal(found.position_of_id, placed.position_of_id)


@pytest.mark.parametrize(
    "wrong", [{"placement": "shp"}, {"log": "x.npz"}, {"plan": {}}, {"placement": None}]
)
def test_what_is_of_another_kind_is_refused(
    tmp_path: Path, rows: np.ndarray, wrong: dict[str, object]
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": rows})
    with bandana_kv.open(tmp_path / "s") as store:
        arguments: dict[str, object] = {"placement": shuffled(store, 0), **wrong}
        with pytest.raises(InputError, match=next(iter(wrong))):
            store.place_anew("t", **arguments)  # type: ignore[arg-type]
        assert store.version == 1
