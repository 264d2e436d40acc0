"""Ids, positions, places and offsets beside the limits of 31 and 32 bits, in sparse files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bandana_kv.cache.index import find, index, make_buckets, unindex
from bandana_kv.disk.blocks import bad_blocks, seal
from bandana_kv.kernels.bitpack import bits_for, position_at, words_for
from bandana_kv.kernels.layout import Layout, cover
from bandana_kv.rows.files import open_rows

ROWS = (1 << 31) - 1
EDGES = [0, 1, (1 << 24) - 1, 1 << 24, (1 << 30) + 1, ROWS - 2, ROWS - 1]


def test_positions_of_the_largest_ids(tmp_path: Path) -> None:
    words = np.memmap(tmp_path / "index", np.uint64, "w+", shape=(words_for(ROWS),))
    bits = bits_for(ROWS)
    assert bits == 31
    packed = np.asarray(words)
    for id in EDGES:
        for position in EDGES:
            at = id * bits
            number = position << (at & 63)
            held = packed[at >> 6 : (at >> 6) + 2].copy()
            packed[at >> 6] |= np.uint64(number & ((1 << 64) - 1))
            packed[(at >> 6) + 1] |= np.uint64(number >> 64)
            assert position_at(packed, bits, id) == position
            packed[at >> 6 : (at >> 6) + 2] = held


def test_the_largest_positions_are_found_in_a_cache() -> None:
    buckets = make_buckets(len(EDGES), ROWS, frugal=True)
    for slot, position in enumerate(EDGES):
        index(buckets, 0, position, slot)
    for slot, position in enumerate(EDGES):
        assert find(buckets, 0, position) == slot
        assert find(buckets, 0, position ^ (1 << 20)) == -1
    for position in EDGES:
        unindex(buckets, 0, position)
        assert find(buckets, 0, position) == -1
    assert not buckets.any()


def test_a_slot_beyond_31_bits_is_found() -> None:
    buckets = make_buckets(1, ROWS, frugal=True)
    index(buckets, 0, ROWS - 1, ROWS - 1)
    assert find(buckets, 0, ROWS - 1) == ROWS - 1


def test_copies_lie_behind_the_largest_table(tmp_path: Path) -> None:
    heat = np.memmap(tmp_path / "heat", np.uint8, "w+", shape=(ROWS,))
    original_of = np.array([ROWS - 1, 5], np.uint32)
    layout = Layout(1, np.asarray(heat), original_of, np.argsort(original_of).astype(np.uint32))
    ordered, places = np.array([4, ROWS - 1]), np.empty(2, np.int64)
    assert cover(ordered, layout, places).tolist() == [4, ROWS - 1]
    # Three a block: what lies first behind the last position is that block's own remainder.
    layout = layout._replace(rows_per_block=3)
    wanted = np.array([5, ROWS - 1])
    assert cover(wanted, layout, places).tolist() == [(ROWS + 2) // 3]
    assert places.tolist() == [3 * ((ROWS + 2) // 3) + 1, 3 * ((ROWS + 2) // 3)]


@pytest.mark.parametrize("block", [1 << 24, 1 << 31, (1 << 32) + 1, (1 << 40) - 1])
@pytest.mark.parametrize("space", [1, 1 << 23, (1 << 24) - 1])
def test_headers_tell_large_blocks_apart(block: int, space: int) -> None:
    payload = np.zeros((1, 4096), np.uint8)
    labels = np.array([block])
    rows = 3 * ((1 << 40) - 1)
    seal(payload, space, labels, rows, 9, 3, 128)
    assert not bad_blocks(payload, space, labels, rows, 9, 3, 128)
    for bit in (24, 31, 32):
        assert bad_blocks(payload, space, labels ^ (1 << bit), rows, 9, 3, 128)
    assert bad_blocks(payload, space ^ (1 << 23), labels, rows, 9, 3, 128)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_rows_beyond_4_gib_are_gathered(tmp_path: Path, dtype: type) -> None:
    table = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.int32, (ROWS, 3))
    for id in EDGES:
        table[id] = [id, -id, 7]
    table.flush()
    wanted = np.array(EDGES, dtype)
    backwards = (ROWS - 1 - wanted.astype(np.int64)).astype(dtype)
    for source, ids, step in (
        (tmp_path / "rows.npy", wanted, 1),
        (table, wanted, 1),
        (table[::-1], backwards, 1),
        (table[:, ::-1], wanted, -1),
    ):
        out = np.empty((len(EDGES), 12), np.uint8)
        with open_rows("table", source) as rows:
            rows.gather(ids, out)
        expected = np.array([[id, -id, 7] for id in EDGES])[:, ::step]
        np.testing.assert_array_equal(out.view(np.int32), expected)
