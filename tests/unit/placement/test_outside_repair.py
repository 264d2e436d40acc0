"""Filling blocks exactly: no more rows move than must, and the cheapest do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.disk.placement import Placement
from bandana_kv.placement import fanout, place
from bandana_kv.placement.outside.nets import Nets, build_nets, transposed, write_hmetis
from bandana_kv.placement.outside.repair import fill_blocks
from bandana_kv.progress import Progress


def nets_of(*requests: list[int], rows: int) -> Nets:
    offsets = np.cumsum([0] + [len(request) for request in requests]).astype(np.int64)
    ids = np.array([row for request in requests for row in request], np.int32)
    return build_nets(offsets, ids, rows)


def touched(nets: Nets, block_of: np.ndarray) -> int:
    """Return the sum of the fanout of all nets, counted plainly."""
    return sum(
        np.unique(block_of[nets.pins[begin:end]]).size
        for begin, end in zip(nets.offsets[:-1], nets.offsets[1:], strict=True)
    )


def blocks_of(order: np.ndarray, rows_per_block: int) -> np.ndarray:
    block_of = np.empty(order.size, np.int64)
    block_of[order] = np.arange(order.size) // rows_per_block
    return block_of


def test_nets_hold_each_row_once_and_nothing_alone() -> None:
    nets = nets_of([7, 3, 7], [5], [], [9, 9], [3, 9, 5], rows=12)
    assert nets.id_of_vertex.tolist() == [3, 5, 7, 9]
    assert nets.offsets.tolist() == [0, 2, 5]
    assert nets.pins.tolist() == [2, 0, 0, 3, 1]
    begins, nets_of_vertex = transposed(nets)
    assert begins.tolist() == [0, 2, 3, 4, 5]
    assert nets_of_vertex.tolist() == [0, 1, 1, 0, 1]


def test_hmetis_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = nets_of([0, 9, 100], [12345, 0], [9, 12345], rows=20000)
    expected = "3 4\n1 2 3\n4 1\n2 4\n"
    path = tmp_path / "nets.hgr"
    write_hmetis(nets, path)
    assert path.read_text() == expected
    monkeypatch.setattr("bandana_kv.placement.outside.nets._PINS_AT_A_TIME", 1)
    write_hmetis(nets, path)
    assert path.read_text() == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 200),
    rows_per_block=st.integers(1, 40),
    used_blocks=st.integers(1, 200),
    requests=st.integers(1, 80),
)
def test_any_assignment_becomes_exact(
    seed: int, rows: int, rows_per_block: int, used_blocks: int, requests: int
) -> None:
    rng = np.random.default_rng(seed)
    wanted = [rng.integers(rows, size=rng.integers(2, 12)).tolist() for _ in range(requests)]
    nets = nets_of(*wanted, rows=rows)
    if nets.vertices == 0:
        return
    blocks = -(-nets.vertices // rows_per_block)
    block_of = rng.integers(min(blocks, used_blocks), size=nets.vertices).astype(np.int32)
    given_blocks = block_of.copy()

    order = fill_blocks(nets, block_of, rows_per_block, Progress())

    assert np.array_equal(block_of, given_blocks)
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(nets.vertices))
    after = blocks_of(order, rows_per_block)
    # new blocks are the old ones in order, the smallest of which went last
    sizes = np.bincount(block_of, minlength=blocks)
    last = int(np.argmin(sizes))
    old_number = np.concatenate([np.delete(np.arange(blocks), last), [last]])
    moved = old_number[after] != block_of
    # no more rows move than are too many
    targets = np.full(blocks, rows_per_block)
    targets[last] = nets.vertices - (blocks - 1) * rows_per_block
    assert moved.sum() == np.maximum(sizes - targets, 0).sum()
    # and none costs more than one block for each request that looks it up
    degree = np.bincount(nets.pins, minlength=nets.vertices)
    assert touched(nets, after) <= touched(nets, block_of) + degree[moved].sum()


def test_exact_blocks_are_left_alone() -> None:
    nets = nets_of([0, 1], [2, 3], [4, 0], rows=5)
    order = fill_blocks(nets, np.array([1, 2, 0, 0, 1], np.int32), 2, Progress())
    assert order.tolist() == [2, 3, 0, 4, 1]


def test_the_row_that_loses_nothing_moves_to_its_company() -> None:
    # row 3 lies in a block of strangers that is one too large; rows 4 and 5 are its company
    nets = nets_of([0, 1, 2], [1, 2], [0, 2], [3, 4, 5], [3, 4], [6, 7, 8], rows=9)
    order = fill_blocks(nets, np.array([0, 0, 0, 0, 2, 2, 1, 1, 1], np.int32), 3, Progress())
    assert sorted(order[:3]) == [0, 1, 2]
    assert sorted(order[6:]) == [3, 4, 5]


def test_mending_costs_less_than_moving_rows_at_random() -> None:
    rng = np.random.default_rng(0)
    homes = rng.integers(40, size=3000)
    ids = (homes[:, None] * 16 + rng.integers(16, size=(3000, 6))).ravel().astype(np.int32)
    log = SimpleNamespace(offsets=np.arange(0, 18001, 6), ids=ids)
    nets = build_nets(log.offsets, ids, 640)
    assert nets.vertices == 640
    block_of = (np.arange(640) // 16).astype(np.int32)
    strayed = rng.choice(640, 64, replace=False)
    block_of[strayed] = rng.integers(40, size=64)
    mended = blocks_of(fill_blocks(nets, block_of, 16, Progress()), 16)
    assert touched(nets, mended) <= touched(nets, block_of)

    by_block = np.argsort(block_of, kind="stable")
    positions = np.empty(640, np.uint32)
    positions[by_block] = np.arange(640, dtype=np.uint32)
    cut_plainly = fanout(log, Placement(positions, 16, "cut"))
    assert touched(nets, mended) / 3000 < 0.8 * cut_plainly
    assert cut_plainly < fanout(log, place(None, 640, 16, "shuffled"))
