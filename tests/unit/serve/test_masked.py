"""Masked arrays are refused wherever something is taken: what is under a mask is not meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import BandanaError, FallbackError, InputError
from bandana_kv.rollout import Rollout
from bandana_kv.rows.source import checked_rows, source_of

ROWS = np.random.default_rng(0).random((40, 6), np.float32)
MASK = np.ma.masked
IDS = np.ma.array([1, 2, 3], mask=[0, 1, 0])
OF_TWO = np.ma.array(ROWS[:2], mask=np.eye(2, 6))
OUT = np.ma.zeros((3, 6), np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bandana_kv.EmbeddingStore]:
    path = tmp_path_factory.mktemp("masked")
    keyed = bandana_kv.Rows(ROWS, keys=np.arange(len(ROWS)))
    bandana_kv.load(path, {"t": ROWS, "u": ROWS, "k": keyed})
    with bandana_kv.open(path) as opened:
        yield opened


Store = bandana_kv.EmbeddingStore
TAKES: dict[str, Callable[[Store], Any]] = {
    "ids": lambda s: s.multi_get("t", IDS),
    "ids without a mask": lambda s: s.multi_get("t", np.ma.array([1, 2])),
    "an id": lambda s: s.get("t", MASK),
    "a list of ids": lambda s: s.multi_get("t", [1, MASK]),
    "a list of arrays": lambda s: s.multi_get("t", list(IDS[:, None])),
    "a dict": lambda s: s.multi_get({"t": [1], "u": IDS}),
    "a dict of one": lambda s: s.multi_get({"t": IDS}),
    "a dict of tuples": lambda s: s.multi_get({"t": (1, 2), "u": (1, MASK)}),
    "asynchronous": lambda s: asyncio.run(s.multi_get_async("t", IDS)),
    "ahead": lambda s: s.prefetch("t", IDS),
    "a batch": lambda s: s.batch(["t", "u"]).multi_get(IDS, [0, 1, 3]),
    "offsets": lambda s: s.batch(["t", "u"]).multi_get([1, 2], np.ma.array([0, 1, 2])),
    "out": lambda s: s.multi_get("t", [1, 2, 3], out=OUT),
    "out of a batch": lambda s: s.batch(["t", "u"]).multi_get([1, 2, 3], [0, 1, 3], out=OUT),
    "bags": lambda s: s.embedding_bag("t", IDS, [0, 1]),
    "bags in rows": lambda s: s.embedding_bag("t", [[1, 2], [3, MASK]]),
    "bags by table": lambda s: s.embedding_bag({"t": (IDS, [0, 1])}),
    "offsets of bags": lambda s: s.embedding_bag("t", [1, 2], np.ma.array([0, 1])),
    "weights": lambda s: s.embedding_bag(
        "t", [1, 2], [0], mode="sum", per_sample_weights=np.ma.array([1.0, 2.0])
    ),
    "out of bags": lambda s: s.embedding_bag("t", [1, 2, 3], [0, 1, 2], out=OUT),
    "keys": lambda s: s.multi_get("k", IDS),
    "keys to add": lambda s: s.upsert("k", IDS, ROWS[:3]),
    "rows to add": lambda s: s.upsert("k", [1, 2], OF_TWO),
    "keys to delete": lambda s: s.delete("k", IDS),
    "updated ids": lambda s: s.update("t", IDS, ROWS[:3]),
    "updated rows": lambda s: s.update("t", [1, 2], OF_TWO),
    "a list of rows": lambda s: s.update("t", [1, 2], list(OF_TWO)),
    "a number": lambda s: s.update("t", [1], [[1, 2, 3, 4, 5, MASK]]),
    "a tuple": lambda s: s.update("t", [1], ((1, 2, 3, 4, 5, MASK),)),
    "a roll-out": lambda s: Rollout(lambda _, ids: ROWS[ids], s).multi_get("t", IDS),
    "a roll-out's out": lambda s: Rollout(lambda _, ids: ROWS[ids], s).multi_get(
        "t", [1, 2, 3], out=OUT
    ),
}


@pytest.mark.parametrize("what", TAKES)
def test_what_a_store_takes(what: str, store: bandana_kv.EmbeddingStore) -> None:
    with pytest.raises(BandanaError, match="mask"):
        TAKES[what](store)
    assert np.array_equal(store.multi_get("t", np.arange(40)), ROWS)
    assert not OUT.any()


@pytest.mark.parametrize("table", [OF_TWO, np.ma.array(ROWS), OF_TWO[:, ::2], OF_TWO.T])
def test_what_is_loaded(table: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'user': a masked array"):
        bandana_kv.load(tmp_path / "s", {"good": ROWS, "user": table})
    assert not (tmp_path / "s").exists()


def test_what_a_log_is_made_of() -> None:
    with pytest.raises(InputError, match="request 1: a masked array"):
        bandana_kv.AccessLog.from_requests([[1, 2], IDS])
    with pytest.raises(InputError, match="request 0: a masked array"):
        bandana_kv.AccessLog.from_requests([[1, MASK]])
    for offsets, ids in ((np.ma.array([0, 3]), [1, 2, 3]), ([0, 3], IDS)):
        with pytest.raises(InputError, match="a masked array"):
            bandana_kv.AccessLog(offsets, ids)


@pytest.mark.parametrize("given", [OF_TWO, list(OF_TWO)])
def test_what_a_source_gives(given: object) -> None:
    source = source_of(lambda *_: given)
    with pytest.raises(FallbackError, match=r"'t'.*a masked array"):
        checked_rows(source, "t", np.arange(2), 6, np.dtype(np.float32))
