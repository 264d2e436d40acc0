"""Rows of .npz files, stored and compressed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.npz import PackedRows
from bandana_kv.rows.positioned import RunRows

RNG = np.random.default_rng(0)
ROWS = RNG.random((300, 8), np.float32)
OTHER = RNG.integers(-100, 100, (50, 3), np.int8)
Rows = Callable[[object], np.ndarray]
SAVED = [np.savez, np.savez_compressed]


@pytest.mark.parametrize("save", SAVED)
def test_rows_of_each_array_come_in_any_order(save: Rows, tmp_path: Path, rows_of: Rows) -> None:
    path = tmp_path / "a.npz"
    save(path, ids=np.arange(5), user=ROWS, item=OTHER)  # type: ignore[call-arg]
    assert np.array_equal(rows_of(f"{path}:user"), ROWS)
    assert np.array_equal(rows_of(f"{path}:item"), OTHER)
    with open_rows("user", f"{path}:user") as source:
        assert isinstance(source, RunRows if save is np.savez else PackedRows)


@pytest.mark.parametrize("save", SAVED)
def test_what_is_loaded_is_served(save: Rows, tmp_path: Path, served: Rows) -> None:
    save(tmp_path / "a.npz", ids=np.arange(5), user=ROWS)  # type: ignore[call-arg]
    assert np.array_equal(served(tmp_path / "a.npz"), ROWS)


def test_compressed_rows_are_unpacked_a_part_at_a_time_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    monkeypatch.setattr("bandana_kv.rows.staged.AT_ONCE_BYTES", 1000)
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    np.savez_compressed(tmp_path / "a.npz", user=ROWS)
    with open_rows("user", tmp_path / "a.npz") as source:
        source.gather(np.arange(3), np.empty((3, 32), np.uint8))
        assert list((tmp_path / "t").iterdir()) == []
    assert np.array_equal(rows_of(tmp_path / "a.npz"), ROWS)


@pytest.mark.parametrize("save", SAVED)
@pytest.mark.parametrize(
    ("arrays", "member", "said"),
    [
        ({"a": ROWS, "b": OTHER}, "", r"which array\? Say .*a.npz:NAME, of a \(300, 8\), b"),
        ({"a": ROWS}, ":c", "no array 'c'; did you mean 'a'"),
        ({"ids": ROWS[0]}, "", r"no array of shape \(rows, dim\), only ids \(8,\)"),
        ({"ids": ROWS[0]}, ":ids", r"a.npz:ids: shape \(8,\)"),
        ({}, "", "holds no array"),
        ({"a": np.array([[{}]], object)}, ":a", "a.npz:a: dtype object is not numeric"),
        ({"a": np.asfortranarray(ROWS)}, ":a", "Fortran order"),
        ({"a": ROWS[:0]}, ":a", "holds no row"),
    ],
)
def test_what_is_wrong_is_said(
    save: Rows, arrays: dict[str, np.ndarray], member: str, said: str, tmp_path: Path
) -> None:
    save(tmp_path / "a.npz", **arrays)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=said):
        open_rows("user", f"{tmp_path / 'a.npz'}{member}")
