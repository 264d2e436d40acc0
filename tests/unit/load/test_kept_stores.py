"""Stores that earlier releases wrote are served, changed and loaded onto."""

from __future__ import annotations

import json
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv import EmbeddingStore
from bandana_kv.disk import manifest

STORES = Path(__file__).parents[2] / "data" / "stores"
KEPT = sorted(STORES.glob("*.tar.xz"))
WRITTEN = runpy.run_path(str(STORES / "write.py"))
USERS, ITEMS = WRITTEN["USERS"], WRITTEN["ITEMS"]


def users(updated: int = 10) -> np.ndarray:
    """Rows of "user", of which the first ones were updated."""
    rows = WRITTEN["users"](0)
    rows[:updated] = WRITTEN["users"](1)[:updated]
    return np.asarray(rows)


def items(generation: int) -> np.ndarray:
    return np.asarray(WRITTEN["items"](generation))


def report_tables(store: Path) -> set[str]:
    return set(manifest.read_current(store).tables)


def assert_words(store: EmbeddingStore, more: dict[str, float]) -> None:
    """See that "word" is served by its keys, and that some have all their numbers equal to this."""
    keys, rows = WRITTEN["words"]()
    known = [key for key in keys if key not in more]
    wanted = rows[[keys.index(key) for key in known]]
    assert np.allclose(store.multi_get("word", known), wanted, atol=1e-6)
    for key, number in more.items():
        assert (store.get("word", key) == number).all()


def index_formats(store: Path) -> list[int]:
    """Return the formats of the indexes of block files, which no other engine has."""
    indexes = sorted(store.glob("segments/*/blocks-1/index"))
    return [int.from_bytes(path.read_bytes()[4:8], "little") for path in indexes]


def assert_served(store: EmbeddingStore, user: np.ndarray, item: np.ndarray) -> None:
    assert np.array_equal(store.multi_get("user", range(USERS)), user)
    assert np.array_equal(store.multi_get("item", range(ITEMS)), item)


@pytest.fixture(params=KEPT, ids=lambda path: path.name.partition(".")[0])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def test_there_is_one_of_each_format_and_engine() -> None:
    names = {path.name.partition(".")[0] for path in KEPT}
    engines = ("blockfile", "lmdb", "rocksdb")
    assert names == {f"manifest-{number}-{engine}" for number in (3, 4, 5, 6) for engine in engines}


def test_it_is_of_the_formats_that_its_name_says(
    kept: Path, request: pytest.FixtureRequest
) -> None:
    _, number, engine = request.node.callspec.id.split("-")
    for path in kept.glob("manifests/*.json"):
        held = json.loads(path.read_bytes())["manifest"]
        assert held["format"] == int(number)
        assert held["tables"]["user"]["copies"] > 0
        assert (held["tables"]["user"].get("placed_by", 0) > 0) == (number != "3")
    index = 2 if number in "56" else 1
    assert index_formats(kept) == ([index, index] if engine == "blockfile" else [])


def test_it_is_sound_and_served(kept: Path) -> None:
    before = {path: path.read_bytes() for path in kept.glob("manifests/*")}
    report = bandana_kv.verify(kept)
    assert report.sound, report.findings
    assert len(report.versions) == 2
    assert report.tables == (4 if "word" in report_tables(kept) else 3)
    for cache_bytes in (0, 1 << 20):
        with bandana_kv.open(kept, cache_bytes) as store:
            assert_served(store, users(), items(1))
            store.check()
    assert {path: path.read_bytes() for path in kept.glob("manifests/*")} == before


def test_it_takes_updates_and_whoever_reads_follows(kept: Path) -> None:
    changed = WRITTEN["users"](1)
    with bandana_kv.open(kept) as reader, bandana_kv.open(kept) as writer:
        assert_served(reader, users(), items(1))
        writer.update("user", range(10, 20), changed[10:20])
        writer.update("item", range(ITEMS), items(0))
        reader.refresh()
        assert_served(reader, users(20), items(0))
        writer.flush()
        assert_served(writer, users(20), items(0))
    assert 1 not in index_formats(kept)
    with bandana_kv.open(kept, 0) as again:
        assert_served(again, users(20), items(0))
    assert bandana_kv.verify(kept).sound


def test_its_keys_come_and_go(kept: Path) -> None:
    if "word" not in report_tables(kept):
        pytest.skip("older stores have no keys")
    with bandana_kv.open(kept) as store:
        assert_words(store, {})
        new = [f"new {number}" for number in range(200)]
        store.upsert("word", [*new, "word 3"], np.full((201, 16), 7.0))
        assert_words(store, dict.fromkeys([*new, "word 3"], 7.0))
    with bandana_kv.open(kept) as store:
        assert store.delete("word", new) == 200
        store.flush()
    with bandana_kv.open(kept) as store:
        assert_words(store, {"word 3": 7.0})
        assert not store.multi_get("word", new, missing="mask")[1].any()
    assert bandana_kv.verify(kept).sound


def test_it_is_placed_anew(kept: Path) -> None:
    with bandana_kv.open(kept, 0) as store:
        served = store.placement("user")
        shuffled = np.random.default_rng(0).permutation(USERS).astype(np.uint32)
        store.place_anew("user", type(served)(shuffled, served.rows_per_block, "shuffled"))
        assert_served(store, users(), items(1))
    assert bandana_kv.verify(kept).sound


def test_it_is_rolled_back_and_loaded_onto(kept: Path) -> None:
    with bandana_kv.open(kept) as store:
        newest = store.version
        assert bandana_kv.rollback(kept) == newest - 1
        store.refresh()
        assert_served(store, users(), items(0))
        assert bandana_kv.rollback(kept, newest) == newest
        store.refresh()
        assert_served(store, users(), items(1))
        engine = manifest.read_current(kept).segments[1].adapter
        loaded = bandana_kv.load(kept, {"item": items(0), "user": users(0)}, adapter=engine)
        store.refresh()
        assert store.version == loaded
        assert_served(store, users(0), items(0))
    assert manifest.read_current(kept).format == manifest.FORMAT_VERSION
    assert bandana_kv.verify(kept).sound
    assert bandana_kv.rollback(kept) == newest
    with bandana_kv.open(kept, 0) as store:
        assert_served(store, users(), items(1))
