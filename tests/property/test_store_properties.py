"""A store against the arrays it was loaded from: every row, bit for bit, whatever the shape."""

from __future__ import annotations

import tempfile
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule

DTYPES = ["<f4", "<f2", "<f8", "i1", "u1", "<i8", ">f4", "<c16", "?"]


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Rows of random bits: NaNs of every kind, and rows of several pages."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rows = draw(st.one_of(st.just(1), st.integers(1, 150)))
    # 4064 bytes fill the one block of the memory adapter; one more byte takes a second page
    most = 4064 // dtype.itemsize
    dim = draw(st.sampled_from([1, 2, 3, 31, 128, most - 1, most, most + 1, 2 * most + 3]))
    bits = np.random.default_rng(rows * 7 + dim).integers(0, 256, (rows, dim * dtype.itemsize))
    return bits.astype(np.uint8).view(dtype)


def log_of(rows: int, seed: int) -> bandana_kv.AccessLog:
    rng = np.random.default_rng(seed)
    requests = [rng.integers(0, rows, rng.integers(1, 9)) for _ in range(40)]
    return bandana_kv.AccessLog.from_requests(requests)


POLICIES = st.builds(
    lambda evicted, rule, threshold, half_life, weight: Policy(
        evicted, Admission(rule, threshold if rule == "threshold" else None), half_life, weight
    ),
    st.sampled_from(get_args(Eviction)),
    st.sampled_from(get_args(Rule)),
    st.integers(0, 3),
    st.sampled_from([0.5, 20.0]),
    st.sampled_from([0.0, 1.0]),
)
# None: what the load planned.
ASKED = st.one_of(st.none(), POLICIES)


@settings(max_examples=60)
@given(
    table=tables(),
    placement=st.sampled_from(["identity", "shuffled", "popularity", "shp"]),
    policy=ASKED,
    cache_bytes=st.sampled_from([0, 1, 100, 5_000, 1 << 24]),
    readers=st.sampled_from([1, 16]),
    coalesce=st.booleans(),
    data=st.data(),
)
def test_served_rows_are_the_source_bit_for_bit(
    table: np.ndarray,
    placement: str,
    policy: Policy | None,
    cache_bytes: int,
    readers: int,
    coalesce: bool,
    data: st.DataObject,
) -> None:
    rows = table.shape[0]
    ids = st.lists(st.integers(0, rows - 1), max_size=60)
    with tempfile.TemporaryDirectory() as directory:
        bandana_kv.load(
            directory,
            {"t": table},
            {"t": log_of(rows, 0)},
            adapter="memory",
            placement=placement,
        )
        with bandana_kv.open(
            directory, cache_bytes, readers=readers, coalesce=coalesce, policy=policy
        ) as store:
            for _ in range(4):
                wanted = data.draw(ids)
                got = store.multi_get("t", wanted)
                assert got.dtype == table.dtype
                assert got.shape == (len(wanted), table.shape[1])
                assert got.tobytes() == table[np.array(wanted, np.int64)].tobytes()
            assert store.get("t", rows - 1).tobytes() == table[-1].tobytes()
            store.check()


@settings(max_examples=40)
@given(
    rows=st.integers(1, 400),
    dim=st.integers(1, 40),
    cache_bytes=st.integers(0, 40_000),
    policy=ASKED,
)
def test_the_cache_stays_within_its_bytes_and_counts_add_up(
    rows: int, dim: int, cache_bytes: int, policy: Policy | None
) -> None:
    table = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
    log = log_of(rows, rows)
    with tempfile.TemporaryDirectory() as directory:
        bandana_kv.load(directory, {"t": table}, {"t": log}, adapter="memory", placement="identity")
        with bandana_kv.open(directory, cache_bytes, policy=policy) as store:
            per_block = store._tables["t"].stored.rows_per_block
            blocks = -(-rows // per_block)
            for number in range(log.requests):
                store.multi_get("t", log.request(number))
            served = store._tables["t"]
            state = served._state
            arrays = [served._data, *state[:-2], *state.ghost, *state.shadow]
            held = sum(array.nbytes for array in arrays) - state.live.nbytes
            assert held == store.cache_bytes
            assert held <= cache_bytes or store.capacity_rows("t") == 0
            counts = store.stats()["t"]
            store.check()
    assert counts["lookups"] == log.lookups
    assert 0 <= counts["neighbours_hit"] <= min(counts["hits"], counts["neighbours_admitted"])
    assert counts["hits"] + counts["block_reads"] <= counts["lookups"]
    assert counts["bytes_read"] == 4096 * counts["block_reads"]
    assert counts["block_reads"] >= (1 if blocks else 0)
    if policy is not None and policy.admission.rule == "none":
        assert counts["neighbours_admitted"] == counts["neighbours_hit"] == 0


@settings(max_examples=25)
@given(
    adapter=st.sampled_from(["blockfile", "lmdb", "memory", "rocksdb"]),
    placement=st.sampled_from(["identity", "shuffled", "shp"]),
    cache_bytes=st.sampled_from([0, 9_000, 1 << 20]),
    readers=st.sampled_from([1, 16]),
    coalesce=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ask", "update", "flush"]), st.lists(st.integers(0, 299), max_size=40)
        ),
        min_size=3,
        max_size=12,
    ),
)
def test_answers_are_the_same_however_a_store_is_served(
    adapter: str,
    placement: str,
    cache_bytes: int,
    readers: int,
    coalesce: bool,
    steps: list[tuple[str, list[int]]],
) -> None:
    rows = np.random.default_rng(3).random((300, 24), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        bandana_kv.load(
            directory, {"t": rows}, {"t": log_of(300, 0)}, adapter=adapter, placement=placement
        )
        with bandana_kv.open(directory, cache_bytes, readers=readers, coalesce=coalesce) as store:
            for number, (what, ids) in enumerate(steps):
                if what == "update":
                    distinct = np.unique(np.array(ids, np.int64))
                    rows[distinct] = number
                    store.update("t", distinct, rows[distinct])
                elif what == "flush":
                    store.flush()
                assert np.array_equal(store.multi_get("t", ids), rows[np.array(ids, np.int64)])
            store.check()
            assert np.array_equal(store.multi_get("t", np.arange(300)), rows)
