"""Placements in files: what comes back, and what damaged files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bandana_kv.errors import FormatError, InputError
from bandana_kv.placement import Placement


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "user.placement"
    positions = np.random.default_rng(0).permutation(1000).astype(np.uint32)
    Placement(positions, 31, "shp", learned_from=0.25).save(path)
    return path


def test_what_was_saved_comes_back_mapped(saved: Path) -> None:
    placement = Placement.load(saved)
    expected = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(placement.position_of_id, expected)
    assert isinstance(placement.position_of_id, np.memmap)
    assert not placement.position_of_id.flags.writeable
    assert (placement.rows_per_block, placement.method, placement.learned_from) == (31, "shp", 0.25)
    assert placement.replicas is None
    assert saved.stat().st_size == 128 + 4000
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_replicas_and_empty_tables(tmp_path: Path) -> None:
    path = tmp_path / "p"
    replicas = np.array([3, 1], np.uint32)
    Placement(np.arange(5, dtype=np.uint32), 2, "a", replicas).save(path)
    loaded = Placement.load(path)
    assert loaded.replicas is not None
    assert loaded.replicas.tolist() == [3, 1]
    assert loaded.position_of_id.tolist() == [0, 1, 2, 3, 4]
    Placement(np.zeros(0, np.uint32), 2, "a").save(path)
    assert Placement.load(path).rows == 0


def test_saving_replaces_in_one_step(saved: Path) -> None:
    before = Placement.load(saved)
    first = before.position_of_id.copy()
    Placement(np.arange(3, dtype=np.uint32), 2, "identity").save(saved)
    assert np.array_equal(before.position_of_id, first)
    assert Placement.load(saved).rows == 3


@pytest.mark.parametrize("at", [0, 8, 20, 50, 110, 125, 128, 4127])
def test_a_flipped_bit_is_found_anywhere(saved: Path, at: int) -> None:
    data = bytearray(saved.read_bytes())
    data[at] ^= 4
    saved.write_bytes(data)
    with pytest.raises(FormatError, match=r"user\.placement"):
        Placement.load(saved)


@pytest.mark.parametrize("size", [0, 7, 100, 128, 4127, 4129])
def test_a_torn_file_is_found(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(FormatError, match=r"user\.placement"):
        Placement.load(saved)


def test_a_newer_format_is_named(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[8] = 2
    saved.write_bytes(data)
    with pytest.raises(FormatError, match="format 2"):
        Placement.load(saved)


def test_a_mistyped_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Placement.load(tmp_path / "nowhere")
