"""Packed positions are the positions."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv.kernels.bitpack import bits_for, pack, position_at, unpack, words_for


@pytest.mark.parametrize("rows", [1, 2, 3, 63, 64, 65, 1000, 65_536, 65_537, 100_003])
def test_unpacks_what_was_packed(rows: int) -> None:
    positions = np.random.default_rng(rows).permutation(rows).astype(np.uint32)
    words = pack(positions)
    assert words.size == words_for(rows)
    assert words.nbytes <= rows * bits_for(rows) / 8 + 16
    assert np.array_equal(unpack(words, rows), positions)
    some = unpack(words, rows, rows // 3, rows - rows // 3)
    assert np.array_equal(some, positions[rows // 3 :])
    assert position_at(words, bits_for(rows), rows - 1) == positions[-1]


@pytest.mark.parametrize(
    ("rows", "bits"), [(1, 1), (2, 1), (3, 2), (256, 8), (257, 9), (10_000_000, 24), (2**31, 31)]
)
def test_takes_as_many_bits_as_the_last_position(rows: int, bits: int) -> None:
    assert bits_for(rows) == bits
