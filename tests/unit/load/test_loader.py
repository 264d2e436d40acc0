"""What a load refuses, and what the next one finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.errors import InputError
from bandana_kv.placement import Placement, place

ROWS = np.random.default_rng(0).random((200, 32), np.float32)
PER_BLOCK = 31
LOG = AccessLog.from_requests(np.random.default_rng(1).integers(0, 200, (60, 6)))


def positions(kind: str) -> np.ndarray:
    made = np.arange(200, dtype=np.uint32)
    if kind == "two rows on one position":
        made[7] = 8
    if kind == "beyond the table":
        made[7] = 200
    if kind == "signed":
        made = made.astype(np.int64)
    return made


@pytest.mark.parametrize("kind", ["two rows on one position", "beyond the table", "signed"])
def test_a_placement_that_loses_rows_is_refused(tmp_path: Path, kind: str) -> None:
    placement = Placement(positions(kind), PER_BLOCK, "mine")
    with pytest.raises(InputError, match=r"'user': the placement 'mine' is not a permutation"):
        bandana_kv.load(
            tmp_path / "s", {"user": ROWS}, adapter="memory", placement={"user": placement}
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("size", [(200, 30), (199, PER_BLOCK)])
def test_a_placement_of_another_table_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    placement = place(None, *size, "identity")
    with pytest.raises(InputError, match="the table has 200 rows, 31 a block"):
        bandana_kv.load(
            tmp_path / "s", {"user": ROWS}, adapter="memory", placement={"user": placement}
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tables": {}}, "no tables"),
        ({"tables": {"": ROWS}}, "'' cannot name a table"),
        ({"tables": {"a\n": ROWS}}, "cannot name a table"),
        ({"tables": {"\ud800": ROWS}}, "cannot name a table"),
        ({"tables": {"é" * 128: ROWS}}, "cannot name a table"),
        ({"tables": {7: ROWS}}, "7 cannot name a table"),
        ({"logs": {"usr": LOG}}, "'usr', which is not loaded"),
        ({"logs": {"user": "log.npz"}}, "AccessLog.read"),
        ({"logs": {"user": AccessLog.from_requests([[5], [7, 200]])}}, "200"),
        ({"placement": {"usr": "shp"}}, "'usr', which is not loaded"),
        ({"placement": "best"}, "'best' is unknown; choose one of"),
        ({"placement": {"user": 3}}, "3 is neither"),
        ({"adapter": "sqlite"}, "no adapter 'sqlite'; there are"),
        ({"adapter": 3}, "3 is neither a name nor an open adapter"),
        ({"admission": "some"}, "choose one of none, all, lower"),
        ({"threshold": 2}, "no admission was named"),
        ({"seed": -1}, "seed -1"),
        ({"seed": "x"}, "seed 'x'"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing_behind(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as raised:
        bandana_kv.load(**{"path": tmp_path / "a" / "s", "tables": {"user": ROWS}} | options)
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_store_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    for wrong in ("file", "file/below"):
        with pytest.raises(InputError, match="cannot be made a store directory"):
            bandana_kv.load(tmp_path / wrong, {"user": ROWS}, adapter="memory")
    assert (tmp_path / "file").read_text() == "theirs"


def test_loading_one_table_leaves_the_others_served(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ROWS + 1}, adapter="lmdb")
    bandana_kv.load(tmp_path, {"item": ROWS[:9] + 2}, adapter="rocksdb")
    bandana_kv.load(tmp_path, {"third": ROWS.astype(np.float16)}, adapter="memory")
    with bandana_kv.open(tmp_path) as store:
        assert store.tables == ("user", "item", "third")
        assert np.array_equal(store.multi_get("user", range(200)), ROWS)
        assert np.array_equal(store.multi_get("item", range(9)), ROWS[:9] + 2)
        assert np.array_equal(store.multi_get("third", range(200)), ROWS.astype(np.float16))
        store.check()


def test_the_same_seed_plans_the_same(tmp_path: Path) -> None:
    read = []
    for name in ("a", "b"):
        bandana_kv.load(tmp_path / name, {"user": ROWS}, {"user": LOG}, adapter="memory", seed=5)
        (positions,) = (tmp_path / name).glob("segments/*/positions-1")
        manifest = bandana_kv.disk.manifest.read_current(tmp_path / name)
        read.append((positions.read_bytes(), manifest.tables["user"]))
    assert read[0] == read[1]


@pytest.mark.parametrize("requests", [[[]], [[1]], [[1], [2]], [[3] * 50] * 30])
@pytest.mark.parametrize("placement", ["shp", "popularity", "shuffled"])
def test_logs_too_small_to_learn_from_do_no_harm(
    tmp_path: Path, requests: list[list[int]], placement: str
) -> None:
    log = AccessLog.from_requests(requests)
    bandana_kv.load(tmp_path, {"user": ROWS}, {"user": log}, adapter="memory", placement=placement)
    with bandana_kv.open(tmp_path, cache_bytes=1 << 16) as store:
        assert store.capacity_rows("user") > 0
        assert np.array_equal(store.multi_get("user", range(200)), ROWS)


def test_cache_is_shared_out_by_the_rows_that_logs_asked_for(tmp_path: Path) -> None:
    busy = AccessLog.from_requests([list(range(100))])
    calm = AccessLog.from_requests([list(range(20))])
    logs = {"busy": busy, "calm": calm}
    bandana_kv.load(tmp_path, {"busy": ROWS, "calm": ROWS}, logs, adapter="memory")
    with bandana_kv.open(tmp_path, cache_bytes=10_000) as store:
        assert store.cache_bytes <= 10_000
        assert store.capacity_rows("busy") > 3 * store.capacity_rows("calm") > 0
