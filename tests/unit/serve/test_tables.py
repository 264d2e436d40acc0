"""Several tables in one request, prepared batches, and rows pooled by bags."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import IdError, InputError, TableNotFoundError

RNG = np.random.default_rng(0)
TABLES = {
    "user": RNG.random((4000, 32), np.float32),
    "item": RNG.random((3000, 32), np.float32),
    "word": RNG.random((2000, 24), np.float32).astype(np.float16),
    "count": RNG.integers(0, 99, (1000, 8)).astype(np.int32),
}


@pytest.fixture(params=["blockfile", "lmdb", "rocksdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bandana_kv.EmbeddingStore]:
    bandana_kv.load(tmp_path / "s", TABLES, adapter=request.param, placement="shuffled")
    with bandana_kv.open(tmp_path / "s", 200_000) as opened:
        yield opened


def free(store: bandana_kv.EmbeddingStore) -> bool:
    return all(not table._in_flight.count for table in store._tables.values())


def test_tables_asked_at_once_give_the_rows_that_each_gives_alone(
    store: bandana_kv.EmbeddingStore,
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        wanted = {
            name: rng.integers(0, len(rows), rng.choice([0, 1, 8, 300]))
            for name, rows in TABLES.items()
        }
        found = store.multi_get(wanted)
        assert list(found) == list(TABLES)
        for name, ids in wanted.items():
            assert found[name].dtype == TABLES[name].dtype
            assert np.array_equal(found[name], TABLES[name][ids])
    assert store.stats()["user"]["hits"] > 0
    assert free(store)
    store.check()


def test_a_table_that_was_flushed_is_read_with_the_engine_that_wrote_it(
    store: bandana_kv.EmbeddingStore,
) -> None:
    """Its neighbours go on with the one that was opened before, and does not see that."""
    new = TABLES["user"][:500] + 1
    store.update("user", np.arange(500), new)
    store.flush()
    for first in range(0, 500, 50):
        ids = np.arange(first, first + 50)
        found = store.multi_get({"user": ids, "item": ids, "count": ids})
        assert np.array_equal(found["user"], new[ids])
        assert np.array_equal(found["item"], TABLES["item"][ids])
        assert np.array_equal(found["count"], TABLES["count"][ids])
    store.check()


def test_a_batch_answers_into_one_array_or_several(store: bandana_kv.EmbeddingStore) -> None:
    rng = np.random.default_rng(2)
    alike, mixed = store.batch(["item", "user"]), store.batch(list(TABLES))
    for _ in range(30):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 9, 2))])
        ids = rng.integers(0, 3000, offsets[-1])
        out = np.empty((ids.size, 32), np.float32)
        for rows in (alike.multi_get(ids, offsets), alike.multi_get(ids, offsets, out)):
            assert np.array_equal(rows[: offsets[1]], TABLES["item"][ids[: offsets[1]]])
            assert np.array_equal(rows[offsets[1] :], TABLES["user"][ids[offsets[1] :]])
        ids, offsets = rng.integers(0, 1000, 20), np.array([0, 5, 5, 12, 20])
        outs = [
            np.empty((n, rows.shape[1]), rows.dtype)
            for n, rows in zip(np.diff(offsets), TABLES.values(), strict=True)
        ]
        for answer in (mixed.multi_get(ids, offsets), mixed.multi_get(ids, offsets, outs)):
            for k, name in enumerate(TABLES):
                part = ids[offsets[k] : offsets[k + 1]]
                assert np.array_equal(answer[k], TABLES[name][part])
    assert free(store)


def test_a_batch_follows_to_another_version(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path, {"a": TABLES["user"], "b": TABLES["item"]})
    with bandana_kv.open(tmp_path) as store:
        batch = store.batch(["a", "b"])
        batch.multi_get([1, 2], [0, 1, 2])
        bandana_kv.load(tmp_path, {"a": TABLES["user"] + 1, "b": TABLES["item"]})
        store.refresh()
        rows = batch.multi_get([1, 2], [0, 1, 2])
        assert np.array_equal(rows, [TABLES["user"][1] + 1, TABLES["item"][2]])


def test_what_is_wrong_is_named_and_nothing_stays_claimed(
    store: bandana_kv.EmbeddingStore,
) -> None:
    with pytest.raises(IdError, match="'item': id 3000"):
        store.multi_get({"user": [3999], "item": [1, 3000]})
    with pytest.raises(TableNotFoundError, match="'nobody'"):
        store.multi_get({"user": [1], "nobody": [1]})
    with pytest.raises(TableNotFoundError, match="'nobody'"):
        store.batch(["user", "nobody"])
    for names in ([], ["user", "user"]):
        with pytest.raises(InputError, match="each once"):
            store.batch(names)
    batch = store.batch(["user", "word"])
    for offsets in ([0, 1], [0, 2, 1], [1, 1, 2], [0, 3, 2], [0, 1, 3]):
        with pytest.raises(InputError, match="offsets"):
            batch.multi_get([1, 2], offsets)
    with pytest.raises(InputError, match="several kinds"):
        batch.multi_get([1, 2], [0, 1, 2], np.empty((2, 32), np.float32))
    assert free(store)


def test_a_fallback_answers_for_each_table(tmp_path: Path) -> None:
    tables = {"user": TABLES["user"], "item": TABLES["item"]}
    bandana_kv.load(tmp_path, tables)
    with bandana_kv.open(tmp_path, fallback=lambda name, ids: tables[name][ids]) as store:
        found = store.multi_get({"user": [1, 2], "item": [3]})
        assert np.array_equal(found["user"], TABLES["user"][[1, 2]])
        assert np.array_equal(found["item"], TABLES["item"][[3]])


def added(rows: np.ndarray, edges: np.ndarray, mode: str, weights: np.ndarray | None) -> np.ndarray:
    """Pool in the order of the rows, one addition after the other."""
    wide = rows.astype(np.float32)
    pooled = np.zeros((len(edges) - 1, rows.shape[1]), np.float32)
    for bag in range(len(edges) - 1):
        for i in range(edges[bag], edges[bag + 1]):
            row = wide[i] if weights is None else wide[i] * weights[i]
            if mode == "max":
                pooled[bag] = row if i == edges[bag] else np.maximum(pooled[bag], row)
            else:
                pooled[bag] += row
        if mode == "mean" and edges[bag + 1] > edges[bag]:
            pooled[bag] /= np.float32(edges[bag + 1] - edges[bag])
    return pooled.astype(rows.dtype)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("table", ["user", "word"])
def test_bags_equal_the_same_additions_over_rows(
    store: bandana_kv.EmbeddingStore, table: str, mode: str
) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 2000, 60)
    offsets = np.array([0, 0, 7, 7, 31])
    edges = np.append(offsets, 60)
    expected = added(TABLES[table][ids], edges, mode, None)
    assert np.array_equal(store.embedding_bag(table, ids, offsets, mode), expected)
    whole = store.embedding_bag(table, ids, edges, mode, include_last_offset=True)
    assert np.array_equal(whole, expected)
    flat = added(TABLES[table][ids], np.arange(0, 61, 6), mode, None)
    out = np.empty_like(flat)
    assert store.embedding_bag(table, ids.reshape(10, 6), mode=mode, out=out) is out
    assert np.array_equal(out, flat)
    both = store.embedding_bag({table: (ids, offsets), "item": ([[1], [2]], None)}, mode=mode)
    assert np.array_equal(both[table], expected)
    assert np.array_equal(both["item"], TABLES["item"][[1, 2]])


def test_weights_and_padding(store: bandana_kv.EmbeddingStore) -> None:
    ids, offsets = np.array([5, 9, 5, 7, 5]), np.array([0, 3])
    weights = np.array([0.5, 2, -1, 3, 0.25], np.float32)
    rows = TABLES["user"][ids]
    expected = added(rows, np.array([0, 3, 5]), "sum", weights)
    found = store.embedding_bag("user", ids, offsets, "sum", per_sample_weights=weights)
    assert np.array_equal(found, expected)
    mean = store.embedding_bag("user", ids, offsets, padding_idx=5)
    assert np.array_equal(mean, TABLES["user"][[9, 7]])
    nothing = store.embedding_bag("user", [[4, 4]], padding_idx=4 - 4000)
    assert not nothing.any()


def test_bags_that_cannot_be_pooled_are_refused(store: bandana_kv.EmbeddingStore) -> None:
    for arguments, named in [
        ({"table": "user", "ids": [1, 2]}, "offsets"),
        ({"table": "user", "ids": [[1, 2]], "offsets": [0]}, "offsets"),
        ({"table": "user", "ids": [1, 2], "offsets": [1]}, "begin with 0"),
        ({"table": "user", "ids": [1, 2], "offsets": [0, 3]}, "begin with 0"),
        ({"table": "user", "ids": [1, 2], "offsets": [0, 2, 1]}, "begin with 0"),
        ({"table": "user", "ids": [[1]], "mode": "median"}, "median"),
        ({"table": "user", "ids": [[1]], "per_sample_weights": [[1.0]]}, "mode='sum'"),
        ({"table": "user", "ids": [[1]], "mode": "sum", "per_sample_weights": [1.0]}, "shape"),
        ({"table": "user", "ids": [[1]], "out": np.empty((2, 32), np.float32)}, "out"),
        ({"table": "count", "ids": [[1]]}, "int32"),
        ({"table": {"user": ([[1]], None)}, "ids": [1]}, "by table name"),
    ]:
        with pytest.raises(InputError, match=named):
            store.embedding_bag(**arguments)


# the compiled reading, and the one through Python
@pytest.mark.parametrize("store", ["blockfile", "rocksdb"], indirect=True)
def test_ten_thousand_requests_of_an_event_loop_may_wait(
    store: bandana_kv.EmbeddingStore,
) -> None:
    ids = np.random.default_rng(4).integers(0, 4000, (10_000, 3))

    async def main() -> list[np.ndarray]:
        return await asyncio.gather(*(store.multi_get_async("user", each) for each in ids))

    assert np.array_equal(np.array(asyncio.run(main())), TABLES["user"][ids])


def test_out_of_an_awaitable_that_ended_is_not_written(
    store: bandana_kv.EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bandana_kv.serve.table import ServedTable

    out = np.zeros((1, 32), np.float32)
    finish = ServedTable.finish

    async def main() -> None:
        loop, begun, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        ended = asyncio.Event()

        def held(*arguments: object) -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result(20)
            finish(*arguments)  # type: ignore[arg-type]
            loop.call_soon_threadsafe(ended.set)

        monkeypatch.setattr(ServedTable, "finish", held)
        monkeypatch.setattr(type(store._tables["user"].stored.adapter), "queue", lambda: None)
        task = asyncio.create_task(store.multi_get_async("user", [7], out=out))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await ended.wait()

    asyncio.run(main())
    assert not out.any()
    store.close()  # the version was left
