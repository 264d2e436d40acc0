"""Rows of zarr directories."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows.files import open_rows

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
OTHER = np.random.default_rng(1).integers(-100, 100, (50, 3), np.int8)
Rows = Callable[[object], np.ndarray]


@pytest.fixture
def zarr() -> Any:
    return pytest.importorskip("zarr")


@pytest.fixture(params=[2, 3])
def group(request: pytest.FixtureRequest, tmp_path: Path, zarr: Any) -> Path:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=request.param)
    root.create_array("user", data=ROWS, chunks=(70, 8))
    root.create_array("deep/item", data=OTHER, chunks=(7, 2))
    root.create_array("bias", data=ROWS[0])
    return tmp_path / "a.zarr"


def test_rows_come_in_any_order_and_are_served(group: Path, rows_of: Rows, served: Rows) -> None:
    assert np.array_equal(rows_of(f"{group}:user"), ROWS)
    assert np.array_equal(rows_of(f"{group}:deep/item"), OTHER)
    assert np.array_equal(served(f"{group}:user"), ROWS)


def test_an_array_without_a_group_and_one_in_memory(
    tmp_path: Path, zarr: Any, rows_of: Rows
) -> None:
    made = zarr.create_array(tmp_path / "a.zarr", data=ROWS, chunks=(70, 8), shards=(140, 8))
    assert np.array_equal(rows_of(tmp_path / "a.zarr"), ROWS)
    assert np.array_equal(rows_of(made), ROWS)
    with pytest.raises(InputError, match="one array without a name; leave 'user' out"):
        open_rows("user", f"{tmp_path / 'a.zarr'}:user")


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("", r"which array\? Say .*deep/item \(50, 3\)"),
        (":usr", "no array 'usr'; did you mean 'user'"),
        (":bias", r"a.zarr:bias: shape \(8,\)"),
    ],
)
def test_what_is_meant_is_said(group: Path, member: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_rows("user", f"{group}{member}")


def test_what_is_no_zarr_directory(tmp_path: Path, zarr: Any) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        open_rows("user", tmp_path / "a.zarr")
    (tmp_path / "b.zarr").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        open_rows("user", tmp_path / "b.zarr")
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(InputError, match="not a readable zarr directory"):
        open_rows("user", tmp_path / "c.zarr")


def test_a_damaged_chunk_is_named(tmp_path: Path, zarr: Any) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=ROWS, chunks=(70, 8))
    chunk = next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with (
        open_rows("user", tmp_path / "a.zarr") as source,
        pytest.raises(InputError, match=r"a\.zarr: rows 0 to 299 cannot be read"),
    ):
        source.gather(np.arange(3), np.empty((3, 32), np.uint8))


def test_pickled_objects_are_refused(tmp_path: Path, zarr: Any) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=ROWS, zarr_format=2)
    described = tmp_path / "a.zarr" / ".zarray"
    said = json.loads(described.read_text())
    said["filters"] = [{"id": "pickle", "protocol": 5}]
    described.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"a\.zarr: .*pickle"):
        open_rows("user", tmp_path / "a.zarr")


def test_without_zarr_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[zarr\]"):
        open_rows("user", tmp_path / "a.zarr")
