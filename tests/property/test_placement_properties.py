"""Whatever the log, a placement is a permutation in exactly full blocks, and repeatable."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv.placement import Placement, fanout, methods, place


@st.composite
def tables(draw: st.DrawFn) -> tuple[SimpleNamespace, int, int]:
    """Return a log, the rows of its table and a block's capacity."""
    rows = draw(st.integers(1, 300))
    capacity = draw(st.integers(1, 64))
    requests = draw(st.integers(0, 60))
    longest = draw(st.integers(1, 120))
    used = draw(st.integers(1, rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = rng.integers(0, longest, size=requests, endpoint=True)
    ids = rng.integers(0, used, size=int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(offsets=offsets, ids=ids), rows, capacity


def check(placement: Placement, rows: int, capacity: int) -> None:
    """Assert that every block but the last is exactly full."""
    positions = placement.position_of_id
    assert positions.dtype == np.uint32
    assert np.array_equal(np.sort(positions), np.arange(rows, dtype=np.uint32))
    sizes = np.bincount(positions // capacity, minlength=placement.blocks)
    assert placement.blocks == sizes.size
    assert np.all(sizes[:-1] == capacity)
    assert 1 <= sizes[-1] <= capacity
    assert np.array_equal(placement.id_of_position()[positions], np.arange(rows, dtype=np.uint32))


@pytest.mark.parametrize("method", ["identity", "popularity", "shp", "shp-plain", "shuffled"])
@settings(max_examples=40)
@given(table=tables(), seed=st.integers(0, 2**31))
def test_permutation_with_full_blocks(
    method: str, table: tuple[SimpleNamespace, int, int], seed: int
) -> None:
    log, rows, capacity = table
    assert method in methods()
    placement = place(log, rows, capacity, method, seed=seed)
    check(placement, rows, capacity)
    again = place(log, rows, capacity, method, seed=seed)
    assert np.array_equal(placement.position_of_id, again.position_of_id)


@given(table=tables(), seed=st.integers(0, 2**31))
def test_fanout_is_what_counting_says(table: tuple[SimpleNamespace, int, int], seed: int) -> None:
    log, rows, capacity = table
    placement = place(None, rows, capacity, "shuffled", seed=seed)
    blocks = placement.position_of_id[log.ids] // capacity
    touched = [
        len(set(blocks[begin:end].tolist()))
        for begin, end in zip(log.offsets[:-1], log.offsets[1:], strict=True)
    ]
    assert fanout(log, placement) == (sum(touched) / len(touched) if touched else 0.0)


@settings(max_examples=40)
@given(table=tables(), seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_resident_rows_and_earlier_placements_leave_it_a_permutation(
    table: tuple[SimpleNamespace, int, int], seed: int, share: float
) -> None:
    log, rows, capacity = table
    first = place(log, rows, capacity, "shp", resident=share, seed=seed)
    check(first, rows, capacity)
    second = place(log, rows, capacity, "shp", start=first, resident=1 - share, seed=seed)
    check(second, rows, capacity)


@settings(max_examples=20)
@given(table=tables(), seed=st.integers(0, 2**31))
def test_threads_change_nothing(table: tuple[SimpleNamespace, int, int], seed: int) -> None:
    log, rows, capacity = table
    one = place(log, rows, capacity, "shp", seed=seed, threads=1)
    two = place(log, rows, capacity, "shp", seed=seed, threads=2)
    assert np.array_equal(one.position_of_id, two.position_of_id)
