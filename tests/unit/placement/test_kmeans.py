"""k-means: similar rows share blocks, whatever the rows are stored as."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.placement import Placement, fanout, kmeans, place, values
from bandana_kv.placement.kmeans import arrange_unseen
from bandana_kv.placement.registry import needs_values
from bandana_kv.progress import Progress
from bandana_kv.rows.files import ArrayRows

METHODS = ("kmeans", "kmeans-2stage")
each_method = pytest.mark.parametrize("method", METHODS)
installed = importlib.util.find_spec("sklearn") is not None
pytestmark = pytest.mark.skipif(not installed, reason="scikit-learn is not installed")


def planted(
    clusters: int = 60, rows_each: int = 32, dim: int = 16, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows around planted centres, float32, and the cluster of each; ids are shuffled."""
    rng = np.random.default_rng(seed)
    home = rng.permutation(clusters * rows_each) // rows_each
    centres = rng.standard_normal((clusters, dim))
    rows = centres[home] + 0.1 * rng.standard_normal((home.size, dim))
    return rows.astype(np.float32), home


def purity(placement: Placement, home: np.ndarray) -> float:
    """Return the mean share of a block that the cluster most frequent in it has."""
    order = placement.id_of_position().astype(np.int64)
    shares = []
    for begin in range(0, order.size, placement.rows_per_block):
        block = home[order[begin : begin + placement.rows_per_block]]
        shares.append(np.bincount(block).max() / block.size)
    return float(np.mean(shares))


def check(placement: Placement, rows: int) -> None:
    assert placement.position_of_id.dtype == np.uint32
    assert np.array_equal(np.sort(placement.position_of_id), np.arange(rows, dtype=np.uint32))


@each_method
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 300),
    dim=st.integers(1, 20),
    capacity=st.integers(1, 64),
    distinct=st.integers(1, 300),
)
def test_permutation_with_full_blocks(
    method: str, seed: int, rows: int, dim: int, capacity: int, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((distinct, dim))[rng.integers(distinct, size=rows)]
    placement = place(None, rows, capacity, method, seed=seed, values=table)
    check(placement, rows)
    assert (placement.method, placement.rows_per_block) == (method, capacity)


@each_method
def test_planted_clusters_share_blocks(method: str) -> None:
    rows, home = planted()
    assert purity(place(None, home.size, 32, "shuffled"), home) < 0.2
    placement = place(None, home.size, 32, method, values=rows)
    check(placement, home.size)
    assert purity(placement, home) > 0.6


@each_method
def test_requests_within_clusters_touch_fewer_blocks(method: str) -> None:
    rows, home = planted()
    members = np.argsort(home, kind="stable").reshape(60, 32)
    rng = np.random.default_rng(0)
    ids = members[rng.integers(60, size=500)[:, None], rng.integers(32, size=(500, 8))].ravel()
    log = SimpleNamespace(offsets=np.arange(0, 4001, 8), ids=ids)
    placed = fanout(log, place(None, home.size, 32, method, values=rows))
    assert placed < 0.5 * fanout(log, place(None, home.size, 32, "shuffled"))


def test_chained_clusters_are_neighbours() -> None:
    """Rows on a line: the order of the placement is, but for small clusters, that of the line."""
    line = np.random.default_rng(0).permutation(4096).astype(np.float32)
    placement = place(None, 4096, 16, "kmeans-2stage", values=line[:, None])
    along = line[placement.id_of_position()]
    assert np.median(np.abs(np.diff(along))) < 32
    assert np.mean(np.abs(np.diff(along)) > 512) < 0.02


@each_method
@pytest.mark.parametrize("clusters", [1, 3, 1000])
def test_number_of_clusters(method: str, clusters: int) -> None:
    rows, home = planted(clusters=6)
    check(place(None, home.size, 32, method, values=rows, clusters=clusters), home.size)


@each_method
def test_seed_and_threads(method: str) -> None:
    rows, home = planted()
    first = place(None, home.size, 32, method, seed=3, threads=1, values=rows).position_of_id
    again = place(None, home.size, 32, method, seed=3, threads=2, values=rows).position_of_id
    other = place(None, home.size, 32, method, seed=4, threads=2, values=rows).position_of_id
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@each_method
@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "int8", "uint8", "int64", "bool", "complex64", ">f4"]
)
def test_any_numbers(method: str, dtype: str) -> None:
    rows, home = planted(clusters=12)
    table = (30 * rows + 100).clip(0, 127) if dtype != "bool" else rows > 0
    placement = place(None, home.size, 32, method, values=table.astype(dtype))
    check(placement, home.size)
    assert purity(placement, home) > 0.5


@each_method
@pytest.mark.parametrize("factor", [1e-300, 1e-41, 1e-30, 1e30, 1e200])
def test_scale_does_not_matter(method: str, factor: float) -> None:
    rows, home = planted(clusters=12)
    table = rows.astype(np.float64) * factor
    check(place(None, home.size, 32, method, values=table), home.size)
    if 1e-38 < factor < 1e38:
        placement = place(None, home.size, 32, method, values=table.astype(np.float32))
        assert purity(placement, home) > 0.5


@each_method
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_numbers_out_of_range_are_placed_as_well(method: str, odd: float) -> None:
    rows, home = planted(clusters=12)
    rows[7, 3] = odd
    rows[::50] = odd
    check(place(None, home.size, 32, method, values=rows), home.size)


@each_method
def test_rows_from_a_file_and_from_a_source(method: str, tmp_path: Path) -> None:
    rows, home = planted(clusters=12)
    np.save(tmp_path / "rows.npy", rows)
    first = place(None, home.size, 32, method, values=rows).position_of_id
    for given_as in (tmp_path / "rows.npy", str(tmp_path / "rows.npy"), ArrayRows("rows", rows)):
        again = place(None, home.size, 32, method, values=given_as).position_of_id
        assert np.array_equal(first, again)


@each_method
def test_large_tables_are_sampled_and_read_in_chunks(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(ArrayRows):
        most = 0

        def gather(self, ids: np.ndarray, out: np.ndarray) -> None:
            self.most = max(self.most, ids.size)
            super().gather(ids, out)

    rows, home = planted(clusters=40)
    source = Watched("rows", rows)
    monkeypatch.setattr(values, "_CHUNK_BYTES", 100 * source.row_bytes)
    monkeypatch.setattr(kmeans, "_SAMPLE_ROWS", 200)
    monkeypatch.setattr(kmeans, "_SAMPLE_PER_CLUSTER", 8)
    placement = place(None, home.size, 32, method, values=source)
    check(placement, home.size)
    assert source.most == 100
    assert purity(placement, home) > 0.3


@each_method
def test_resident_rows_are_left_out(method: str) -> None:
    rows, home = planted(clusters=12)
    resident = np.zeros(home.size, np.bool_)
    resident[5::7] = True
    placement = place(None, home.size, 32, method, values=rows, resident=resident)
    check(placement, home.size)
    others = int((~resident).sum())
    assert placement.position_of_id[resident].min() == others


def test_progress_is_told_of_every_row() -> None:
    class Told(Progress):
        def __init__(self) -> None:
            self.total = self.units = 0

        def start(self, label: str, total: int, unit: str) -> None:
            self.total = total

        def advance(self, count: int) -> None:
            self.units += count

    rows, home = planted(clusters=12)
    for method, times in (("kmeans", 1), ("kmeans-2stage", 2)):
        told = Told()
        place(None, home.size, 32, method, values=rows, progress=told)
        assert told.total == told.units == times * home.size


def test_registered_as_methods_by_values() -> None:
    assert needs_values("kmeans")
    assert needs_values("kmeans-2stage")
    assert not needs_values("shp")


@each_method
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": None}, "pass values="),
        ({"values": np.zeros((5, 2))}, "5 rows.*384"),
        ({"values": np.zeros(384)}, r"not \(rows, dim\)"),
        ({"values": "rows.txt"}, "is of no kind that is read"),
        ({"clusters": 0}, "clusters must be"),
        ({"clusters": 2.5}, "clusters must be"),
        ({"cluster": 2}, "no option 'cluster'.*clusters"),
    ],
)
def test_what_is_refused(method: str, arguments: dict[str, Any], message: str) -> None:
    rows, _ = planted(clusters=12)
    with pytest.raises(InputError, match=message):
        place(None, 384, 32, method, **({"values": rows} | arguments))


@each_method
def test_missing_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=rf"{method}.*pip install 'bandana-kv\[kmeans\]'"):
        place(None, 4, 2, method, values=np.zeros((4, 2)))
    log = SimpleNamespace(offsets=np.array([0]), ids=np.array([], np.int64))
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[kmeans\]"):
        arrange_unseen(place(None, 4, 2, "identity"), log, np.zeros((4, 2)))


def test_unseen_rows_are_arranged_and_the_others_stay() -> None:
    rows, home = planted()
    seen = np.flatnonzero(home < 20)
    rng = np.random.default_rng(0)
    log = SimpleNamespace(
        offsets=np.arange(0, 4001, 8), ids=rng.permutation(np.tile(seen, 7))[:4000]
    )
    assert np.array_equal(np.unique(log.ids), seen)
    placement = place(log, home.size, 32, "shp", quality="fast")
    arranged = arrange_unseen(placement, log, rows)
    check(arranged, home.size)
    assert arranged.method == "shp+kmeans-2stage"
    assert np.array_equal(arranged.position_of_id[seen], placement.position_of_id[seen])
    unseen_blocks = slice(20 * 32, None)
    before = home[placement.id_of_position()[unseen_blocks]].reshape(-1, 32)
    after = home[arranged.id_of_position()[unseen_blocks]].reshape(-1, 32)
    share = [np.mean([np.bincount(block).max() / 32 for block in part]) for part in (before, after)]
    assert share[0] < 0.2
    assert share[1] > 0.6


def test_nothing_unseen_changes_nothing() -> None:
    rows, home = planted(clusters=4)
    log = SimpleNamespace(offsets=np.array([0, 128]), ids=np.arange(128))
    placement = place(None, home.size, 32, "shuffled")
    arranged = arrange_unseen(placement, log, rows)
    assert np.array_equal(arranged.position_of_id, placement.position_of_id)


def test_values_of_another_table_are_refused() -> None:
    log = SimpleNamespace(offsets=np.array([0, 2]), ids=np.array([0, 1]))
    placement = place(None, 4, 2, "identity")
    with pytest.raises(InputError, match=r"5 rows.*4"):
        arrange_unseen(placement, log, np.zeros((5, 2)))
