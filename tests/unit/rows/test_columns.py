"""Rows and keys of Parquet and Arrow files."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

import bandana_kv
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows import staged
from bandana_kv.rows.columns import ColumnRows
from bandana_kv.rows.files import open_rows

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
Rows = Callable[[object], np.ndarray]
KINDS = ["parquet", "arrow", "feather"]


def lists(rows: np.ndarray, form: str = "fixed") -> Any:
    if form == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    if form == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    offsets = np.arange(0, rows.size + 1, rows.shape[1])
    if form == "list":
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows.reshape(-1))
    return pa.LargeListArray.from_arrays(pa.array(offsets), rows.reshape(-1))


def write(path: Path, columns: dict[str, Any], rows: int = 70) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, rows)
    else:
        pyarrow.feather.write_feather(table, path, chunksize=rows)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["fixed", "list", "large", "tensor"])
def test_rows_come_in_any_order(
    kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    monkeypatch.setattr(staged, "AT_ONCE_BYTES", 32 * 47)
    path = write(tmp_path / f"a.{kind}", {"id": np.arange(300), "values": lists(ROWS, form)})
    assert np.array_equal(rows_of(path), ROWS)
    assert np.array_equal(rows_of(f"{path}:values"), ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_served(kind: str, tmp_path: Path, served: Rows) -> None:
    path = write(tmp_path / f"a.{kind}", {"id": np.arange(300), "values": lists(ROWS)})
    assert np.array_equal(served(path), ROWS)


@pytest.mark.parametrize("dtype", ["f8", "f2", "i1", "u8", "?"])
def test_numbers_of_all_kinds(dtype: str, tmp_path: Path, rows_of: Rows) -> None:
    rows = (ROWS * 100).astype(dtype)
    flat = pa.array(rows.reshape(-1))
    columns = {"a.b": pa.FixedSizeListArray.from_arrays(flat, 8), "a": np.arange(300)}
    path = write(tmp_path / "a.parquet", columns)
    found = rows_of(path)
    assert found.dtype == rows.dtype
    assert np.array_equal(found, rows)


def test_a_column_whose_name_begins_that_of_another(tmp_path: Path, rows_of: Rows) -> None:
    path = write(tmp_path / "a.parquet", {"a.b": lists(ROWS + 1), "a": lists(ROWS)})
    assert np.array_equal(rows_of(f"{path}:a"), ROWS)
    assert np.array_equal(rows_of(f"{path}:a.b"), ROWS + 1)


KEYS: dict[str, tuple[Any, np.ndarray]] = {
    "whole numbers": (pa.array(np.arange(300, dtype=np.int32) - 5), np.arange(300) - 5),
    "unsigned": (
        pa.array(np.arange(300, dtype=np.uint64) + 2**63),
        np.arange(300, dtype=np.uint64) + 2**63,
    ),
    "text": (pa.array([f"k{at}" for at in range(300)]), [f"k{at}" for at in range(300)]),
    "bytes": (pa.array([b"%d\0" % at for at in range(300)]), [b"%d\0" % at for at in range(300)]),
    "few": (
        pa.array([str(at % 7) for at in range(300)]).dictionary_encode(),
        [str(at % 7) for at in range(300)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", KEYS)
def test_keys_are_read_when_they_are_asked_for(of: str, kind: str, tmp_path: Path) -> None:
    column, expected = KEYS[of]
    path = write(tmp_path / f"a.{kind}", {"user:id": column, "values": lists(ROWS)})
    for member in (":values:user:id", "::user:id"):
        with open_rows("user", f"{path}{member}") as source:
            assert (source.rows, source.dim) == (300, 8)
            keys = source.keys
            assert keys is not None
            assert keys.tolist() == list(expected)
            assert keys.dtype == getattr(expected, "dtype", object)
            assert source.keys is keys
    with open_rows("user", f"{path}:values") as source:
        assert source.keys is None


def test_keys_that_are_none(tmp_path: Path) -> None:
    columns = {
        "null": pa.array([1, None, 3]),
        "float": pa.array([1.0, 2.0, 3.0]),
        "values": lists(ROWS[:3]),
    }
    path = write(tmp_path / "a.parquet", columns)
    wrong = {"null": "null: row 1 has no key", "float": "float: is of type double"}
    for key, said in wrong.items():
        with (
            open_rows("user", f"{path}:values:{key}") as source,
            pytest.raises(InputError, match=said),
        ):
            source.keys  # noqa: B018 - it is read then
    with pytest.raises(InputError, match="no column 'nul'; did you mean 'null'"):
        open_rows("user", f"{path}:values:nul")


RAGGED = pa.array([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("columns", "member", "said"),
    [
        ({"a": lists(ROWS), "b": lists(ROWS)}, "", r"which column\? .*a \(300, 8\), b \(300, 8\)"),
        ({"a": lists(ROWS)}, ":b", "no column 'b'; did you mean 'a'"),
        ({"a": [1, 2]}, "", r"no column of shape \(rows, dim\), only a \(2,\)"),
        ({"a": [1, 2]}, ":a", "a: is of type int64; rows are lists"),
        ({"a": [["x"]]}, ":a", "not numeric"),
        ({"a": [[[1]]]}, ":a", "not numeric"),
        ({"a": lists(ROWS[:0])}, ":a", "holds no row"),
        ({"a": pa.array([[]], pa.list_(pa.float32()))}, ":a", "holds no row"),
        ({"a": pa.array([None, [1.0]])}, ":a", "row 0 is null"),
        ({"a": pa.array([[1.0], None])}, ":a", "row 1 is null"),
        ({"a": pa.array([[1.0], None], pa.list_(pa.float64(), 1))}, ":a", "row 1 is null"),
        ({"a": pa.array([[1.0, 2.0], [3.0, None]])}, ":a", "row 1 holds a null"),
        ({"a": RAGGED}, ":a", "row 1 has 1 numbers, and row 0 has 2"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_left(
    kind: str,
    columns: dict[str, Any],
    member: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    path = write(tmp_path / f"a.{kind}", columns)
    with pytest.raises(InputError, match=said):
        bandana_kv.load(tmp_path / "s", {"user": f"{path}{member}"})
    assert sorted(each.name for each in tmp_path.rglob("*")) == [path.name, "t"]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([lists(ROWS), lists(ROWS)], ["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has 2 columns 'a'"):
        open_rows("user", f"{tmp_path / 'a.parquet'}:a")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[parquet\]"):
        open_rows("user", tmp_path / "a.parquet")


def test_parquet_is_not_held_in_memory_as_it_is_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((40_000, 128), np.float32)
    columns = {"values": lists(rows)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1000)
    with ColumnRows(tmp_path / "a.parquet") as source:
        before, most, done = pa.total_allocated_bytes(), 0, 0
        for part in source._parts(1000):
            most = max(most, pa.total_allocated_bytes() - before)
            done += len(part)
    assert done == 40_000
    assert most < rows.nbytes / 4
