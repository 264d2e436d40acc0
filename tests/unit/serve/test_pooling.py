"""Pooled rows: what they come to, of each kind of rows and each engine; and what is refused."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.codecs import codec_names
from bandana_kv.codecs.rows import NUMBERS
from bandana_kv.errors import BandanaError, IdError, InputError, TableNotFoundError

ROWS, DIM = 900, 13
ENGINES = ["blockfile", "lmdb", "memory"]
VALUES = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
VALUES[1] = -0.0
CODED = ["float16", "bfloat16", "int8-rowwise", "int4-rowwise"]
TABLES: dict[str, np.ndarray] = {
    **dict.fromkeys(("float32", *CODED), VALUES),
    "single": np.random.default_rng(1).standard_normal((ROWS, 32)).astype(np.float32),
    "double": np.random.default_rng(2).standard_normal((ROWS, 7)),
    "half": VALUES.astype(np.float16),
    "big": VALUES.astype(">f4"),
    "big double": VALUES.astype(">f8"),
    "big half": VALUES.astype(">f2"),
}

_fmaf = ctypes.CDLL(None).fmaf
_fmaf.restype, _fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3


def fused(factor: np.ndarray, number: np.ndarray, addend: np.ndarray) -> np.ndarray:
    """Return what the C library makes of ``factor * number + addend``, all float32."""
    return np.array([_fmaf(*each) for each in zip(factor, number, addend, strict=True)], "f4")


def pooled(
    rows: np.ndarray,
    edges: np.ndarray,
    mode: str,
    weights: np.ndarray | None = None,
    *,
    padded: bool = False,
) -> np.ndarray:
    """Return one row a bag, added in order, as float32; of float64 rows as those."""
    kind = rows.dtype if rows.dtype.itemsize == 8 else np.dtype(np.float32)
    kind = kind.newbyteorder("=")
    rows = rows.astype(kind)
    found = np.zeros((len(edges) - 1, rows.shape[1]), kind)
    for bag, (first, last) in enumerate(itertools.pairwise(edges)):
        for i in range(first, last):
            if mode == "max":
                found[bag] = (
                    rows[i] if i == first else np.where(rows[i] > found[bag], rows[i], found[bag])
                )
            elif weights is None:
                found[bag] += rows[i]
            elif kind == np.float64 or padded:
                found[bag] += rows[i] * kind.type(weights[i])
            else:
                factor = np.full(rows.shape[1], weights[i], "f4")
                found[bag] = fused(factor, rows[i], found[bag])
        if mode == "mean" and last > first:
            found[bag] /= kind.type(last - first)
    return found


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit."""
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


@pytest.fixture(scope="module", params=ENGINES)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[bandana_kv.EmbeddingStore]:
    path = tmp_path_factory.mktemp(request.param) / "s"
    bandana_kv.load(
        path,
        {**TABLES, "count": np.ones((10, 4), np.int32)},
        adapter=request.param,
        placement="shuffled",
        store_as={name: name for name in CODED},
    )
    with bandana_kv.open(path, 60_000) as opened:
        yield opened


def test_kernels_know_every_codec() -> None:
    assert sorted(NUMBERS) == sorted(codec_names())
    assert len(set(NUMBERS.values())) == len(NUMBERS)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    seed = draw(st.integers(0, 1 << 32))
    rng = np.random.default_rng(seed)
    count, bags = draw(st.integers(0, 90)), draw(st.integers(1, 12))
    ids = rng.integers(0, draw(st.sampled_from([5, ROWS])), count)
    edges = np.sort(np.concatenate([[0], rng.integers(0, count + 1, bags - 1)]))
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    asked = {"mode": mode, "ids": ids.astype(draw(st.sampled_from(["i4", "i8"]))), "offsets": edges}
    if mode == "sum" and draw(st.booleans()):
        asked["per_sample_weights"] = rng.standard_normal(count).astype("f4")
    if draw(st.booleans()):
        asked |= {"offsets": np.append(edges, count), "include_last_offset": True}
    if draw(st.booleans()) and count:
        asked["padding_idx"] = int(ids[0]) - (ROWS if draw(st.booleans()) else 0)
    return asked


def expected_of(store: bandana_kv.EmbeddingStore, table: str, asked: dict[str, Any]) -> np.ndarray:
    """Return the same additions over rows of ``multi_get``."""
    ids, weights = asked["ids"], asked.get("per_sample_weights")
    last = [] if asked.get("include_last_offset") else [ids.size]
    edges = np.concatenate([asked["offsets"], last]).astype(int)
    padding = asked.get("padding_idx")
    if padding is not None:
        kept = ids != padding % ROWS
        edges = np.concatenate([[0], np.cumsum(kept)])[edges]
        ids, weights = ids[kept], None if weights is None else weights[kept]
    rows = store.multi_get(table, ids)
    found = pooled(rows, edges, asked["mode"], weights, padded=padding is not None)
    return found.astype(rows.dtype)


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=40)
@given(asked=requests())
def test_bags_equal_the_same_additions_over_rows(
    store: bandana_kv.EmbeddingStore, table: str, asked: dict[str, Any]
) -> None:
    found = store.embedding_bag(table, **asked)  # first: some rows are cached, others are not
    assert same(found, expected_of(store, table, asked))
    out = np.full_like(found, 7)
    assert store.embedding_bag(table, out=out, **asked) is out
    assert same(out, found)


@settings(max_examples=40)
@given(each=st.lists(requests(), min_size=2, max_size=5), mode=st.sampled_from(["sum", "max"]))
def test_several_tables_equal_each_of_them(
    store: bandana_kv.EmbeddingStore, each: list[dict[str, Any]], mode: str
) -> None:
    names = [*list(TABLES)[: len(each)][::-1], "double"]
    wanted, expected = {}, {}
    for name, asked in zip(names, [*each, each[0]], strict=True):
        how = {"ids": asked["ids"], "offsets": asked["offsets"], "mode": mode}
        if asked.get("include_last_offset"):
            how["offsets"] = how["offsets"][:-1]
        weights = asked.get("per_sample_weights") if mode == "sum" else None
        wanted[name] = (how["ids"], how["offsets"])
        if weights is not None:
            wanted[name] += (weights,)
            how["per_sample_weights"] = weights
        expected[name] = how
    outs = {
        name: np.full((len(wanted[name][1]), TABLES[name].shape[1]), 3, TABLES[name].dtype)
        for name in names[:2]
        if name not in CODED
    }
    found = store.embedding_bag(wanted, mode=mode, out=outs)
    assert list(found) == names
    for name, how in expected.items():
        assert same(found[name], expected_of(store, name, how))
    for name, out in outs.items():
        assert found[name] is out


def test_what_goes_into_fewer_bits_is_rounded_once(store: bandana_kv.EmbeddingStore) -> None:
    ids = np.arange(40).reshape(4, 10)
    edges = np.arange(0, 41, 10)
    for table, kind in (
        ("single", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("double", np.float32),
    ):
        out = np.empty((4, TABLES[table].shape[1]), kind)
        store.embedding_bag(table, ids, mode="sum", out=out)
        wide = pooled(store.multi_get(table, ids.reshape(-1)), edges, "sum")
        assert same(out, wide.astype(kind))
    beside = np.empty((4, 64), np.float32)[:, ::2]
    assert store.embedding_bag("single", ids, mode="sum", out=beside) is beside
    assert np.array_equal(beside, store.embedding_bag("single", ids, mode="sum"))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_without_ids_give_zeros(store: bandana_kv.EmbeddingStore, mode: Any) -> None:
    assert not store.embedding_bag("half", [7], [0, 0, 1, 1], mode)[[0, 2, 3]].any()
    out = np.ones((3, 32), np.float32)
    store.embedding_bag("single", [], [0, 0, 0], mode, out=out)
    assert not out.any()
    assert store.embedding_bag("single", np.zeros((2, 0), int), mode=mode).shape == (2, 32)
    assert store.embedding_bag("single", [], [], mode).shape == (0, 32)
    both = store.embedding_bag({"single": ([], [0]), "double": ([[3, 3]], None)}, mode=mode)
    assert not both["single"].any()
    assert both["double"].any()
    assert store.embedding_bag({}) == {}


def test_zero_is_added_to(store: bandana_kv.EmbeddingStore) -> None:
    assert np.signbit(store.multi_get("float32", [1])).all()
    assert not np.signbit(store.embedding_bag("float32", [[1]], mode="sum")).any()
    assert np.signbit(store.embedding_bag("float32", [[1]], mode="max")).all()


REFUSED: dict[str, tuple[dict[str, Any], type[BandanaError], str]] = {
    "no table": ({"table": "x", "ids": [[1]]}, TableNotFoundError, "'x'"),
    "no table of several": ({"table": {"x": ([1], [0])}}, TableNotFoundError, "'x'"),
    "no ids": ({"table": "single"}, InputError, "no ids"),
    "an id": ({"ids": [[ROWS]]}, IdError, f"id {ROWS}"),
    "an id of several": ({"table": {"single": ([ROWS], [0])}}, IdError, f"id {ROWS}"),
    "a fraction": ({"ids": [[0.5]]}, IdError, "integers"),
    "offsets that fall": ({"ids": [1, 2], "offsets": [0, 2, 1]}, InputError, "not fall"),
    "offsets behind": ({"ids": [1], "offsets": [0, 2]}, InputError, "not pass 1"),
    "offsets that begin late": ({"ids": [1], "offsets": [1]}, InputError, "begin with 0"),
    "negative offsets": ({"ids": [1], "offsets": [0, -1]}, InputError, "not fall"),
    "no last offset": (
        {"ids": [], "offsets": [], "include_last_offset": True},
        InputError,
        "offsets",
    ),
    "fractions as offsets": ({"ids": [1], "offsets": [0.0]}, InputError, "offsets"),
    "three dimensions": ({"ids": [[[1]]]}, InputError, r"\(1, 1, 1\) without"),
    "a mode": ({"ids": [[1]], "mode": "median"}, InputError, "median"),
    "weights of a mean": ({"ids": [[1]], "per_sample_weights": [[1.0]]}, InputError, "'sum'"),
    "fewer weights": (
        {"ids": [[1, 2]], "mode": "sum", "per_sample_weights": [[1.0]]},
        InputError,
        "shape",
    ),
    "weights of several": (
        {"table": {"single": ([1], [0])}, "per_sample_weights": [1.0]},
        InputError,
        "table name",
    ),
    "weights alone of several": ({"table": {"single": ([1],)}}, InputError, "offsets, weights"),
    "padding": ({"ids": [[1]], "padding_idx": ROWS}, InputError, "padding_idx 900"),
    "padding from the end": ({"ids": [[1]], "padding_idx": -901}, InputError, "-900"),
    "rows of integers": ({"table": "count", "ids": [[1]]}, InputError, "int32"),
    "a shape": ({"ids": [[1]], "out": np.empty((2, 32), "f4")}, InputError, "out"),
    "a dtype": ({"ids": [[1]], "out": np.empty((1, 32), "i4")}, InputError, "out"),
    "read-only": (
        {"ids": [[1]], "out": np.broadcast_to(np.float32(0), (1, 32))},
        InputError,
        "writeable",
    ),
    "out by name": ({"ids": [[1]], "out": {"single": np.empty((1, 32), "f4")}}, InputError, "out"),
    "out of several": (
        {"table": {"single": ([1], [0])}, "out": np.empty((1, 32), "f4")},
        InputError,
        "by table",
    ),
    "out of others": (
        {"table": {"single": ([1], [0])}, "out": {"half": np.empty((1, 13), "f2")}},
        InputError,
        "'half'",
    ),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_wrong_is_named(store: bandana_kv.EmbeddingStore, named: str) -> None:
    arguments, error, said = REFUSED[named]
    with pytest.raises(error, match=said):
        store.embedding_bag(**({"table": "single"} | arguments))
    assert all(not table._in_flight.count for table in store._tables.values())


def test_keys_are_pooled_and_a_key_may_be_padding(tmp_path: Path) -> None:
    keys = np.arange(5, 5 + 3 * ROWS, 3)
    rows = bandana_kv.Rows(VALUES, keys=keys)
    bandana_kv.load(tmp_path, {"t": rows})
    with bandana_kv.open(tmp_path) as store:
        found = store.embedding_bag("t", [keys[3], -1, keys[5]], [0, 2], "sum", padding_idx=-1)
        assert same(found, VALUES[[3, 5]] + np.float32(0))
        with pytest.raises(IdError, match="-1"):
            store.embedding_bag("t", [keys[3], -1], [0])


@pytest.mark.parametrize("table", ["float32", "single", "double", "half"])
@settings(max_examples=40)
@given(asked=requests())
def test_bags_are_those_of_torch(
    store: bandana_kv.EmbeddingStore, table: str, asked: dict[str, Any]
) -> None:
    """On processors, of the release that the documentation names."""
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another release may add otherwise")
    if table == "half" and asked["mode"] == "mean":
        return  # torch rounds the sum, too
    rows = torch.from_numpy(TABLES[table])
    given_to_torch = dict(asked)
    for name in ("ids", "offsets", "per_sample_weights"):
        if name in asked:
            given_to_torch[name] = torch.from_numpy(np.asarray(asked[name]))
    ids = given_to_torch.pop("ids").long()
    if "per_sample_weights" in asked:
        halved = given_to_torch["per_sample_weights"].to(rows.dtype)
        given_to_torch["per_sample_weights"] = halved
        asked = asked | {"per_sample_weights": halved.numpy()}
    expected = torch.nn.functional.embedding_bag(ids, rows, **given_to_torch).numpy()
    assert same(store.embedding_bag(table, **asked), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maxima_with_nan_are_those_of_torch(tmp_path: Path, dtype: Any) -> None:
    rows = np.array([[np.nan], [1], [2], [-0.0], [0.0]], dtype)
    ids = [[0, 1, 2], [1, 0, 0], [2, 0, 1], [0, 0, 0], [3, 4, 4], [4, 3, 3]]
    bandana_kv.load(tmp_path, {"t": rows})
    with bandana_kv.open(tmp_path) as store:
        found = store.embedding_bag("t", ids, mode="max")
    assert np.array_equal(found[:, 0], [np.nan, 1, 2, np.nan, 0, 0], equal_nan=True)
    assert np.signbit(found[4:, 0]).tolist() == [True, False]
    torch = pytest.importorskip("torch")
    bags = torch.nn.functional.embedding_bag(torch.tensor(ids), torch.from_numpy(rows), mode="max")
    assert np.array_equal(found, bags.numpy(), equal_nan=True)
