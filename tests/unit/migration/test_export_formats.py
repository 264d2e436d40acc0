"""Tables written back as safetensors and Parquet, and loaded from there again."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.errors import DiskFullError, InputError, MissingExtraError
from bandana_kv.migration import export as module
from bandana_kv.migration import export_formats
from bandana_kv.rows.files import open_rows
from bandana_kv.tools.export_table import main

ROWS = np.random.default_rng(0).random((5000, 16), np.float32)
SUFFIXES = ["safetensors", "parquet"]


def rows_of(table: Any) -> np.ndarray:
    with open_rows("user", table) as source:
        out = np.empty((source.rows, source.row_bytes), np.uint8)
        source.gather(np.arange(source.rows), out)
        return out.view(source.dtype)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"user": ROWS, 'it"em': ROWS[:7]}, placement="shuffled")
    return tmp_path / "s"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_rows_come_back(
    suffix: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 9000)
    monkeypatch.setattr(export_formats, "_GROUP_BYTES", 50_000)
    for table, rows in (("user", ROWS), ('it"em', ROWS[:7])):
        out = tmp_path / f"{len(rows)}.{suffix}"
        done = bandana_kv.export(store, table, out)
        assert (done.rows, done.dim, done.dtype, done.bytes) == (len(rows), 16, "<f4", rows.nbytes)
        assert np.array_equal(rows_of(out), rows)
    names = {"5000." + suffix, "7." + suffix, "s"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_tensor_has_the_name_of_the_table(store: Path, tmp_path: Path) -> None:
    bandana_kv.export(store, 'it"em', tmp_path / "a.safetensors")
    assert np.array_equal(rows_of(f'{tmp_path / "a.safetensors"}:it"em'), ROWS[:7])
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 8 == 0


def test_columns_are_ids_and_values(store: Path, tmp_path: Path) -> None:
    bandana_kv.export(store, "user", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("id").type == pa.int64()
    assert table.schema.field("values").type == pa.list_(pa.float32(), 16)
    assert np.array_equal(table["id"].to_numpy(), np.arange(5000))
    with open_rows("user", f"{tmp_path / 'a.parquet'}:values:id") as source:
        assert np.array_equal(np.asarray(source.keys), np.arange(5000))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", ">i8", "<u4", "i1", "u1", "?"])
def test_numbers_of_all_kinds(suffix: str, dtype: str, tmp_path: Path) -> None:
    rows = (ROWS[:100] * 100).astype(dtype)
    bandana_kv.load(tmp_path / "s", {"user": rows}, placement="shuffled")
    out = tmp_path / f"a.{suffix}"
    bandana_kv.export(tmp_path / "s", "user", out)
    found = rows_of(out)
    assert found.dtype == rows.dtype.newbyteorder("<")
    assert np.array_equal(found, rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_that_a_file_has_not_are_refused(suffix: str, tmp_path: Path) -> None:
    rows = ROWS[:100].astype(np.complex128)
    bandana_kv.load(tmp_path / "s", {"user": rows}, placement="shuffled")
    with pytest.raises(InputError, match=r"cannot hold complex128 .*name it \.npy"):
        bandana_kv.export(tmp_path / "s", "user", tmp_path / f"a.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_one_name_that_safetensors_has_no_room_for(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"__metadata__": ROWS}, placement="shuffled")
    with pytest.raises(InputError, match="no room for a tensor named __metadata__"):
        bandana_kv.export(tmp_path / "s", "__metadata__", tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(
    suffix: str,
    error: BaseException,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_rows", fails)
    with pytest.raises(DiskFullError if isinstance(error, OSError) else KeyboardInterrupt):
        bandana_kv.export(store, "user", tmp_path / f"a.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_without_pyarrow_the_extra_is_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[parquet\]"):
        bandana_kv.export(store, "user", tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_writes_what_loads_again(suffix: str, store: Path, tmp_path: Path) -> None:
    out = tmp_path / f"a.{suffix}"
    done = CliRunner().invoke(main, [str(store), "--table", "user", "--out", str(out)])
    assert done.exit_code == 0, done.output
    bandana_kv.load(tmp_path / "again", {"user": out}, placement="identity")
    with bandana_kv.open(tmp_path / "again") as opened:
        assert np.array_equal(opened.multi_get("user", range(5000)), ROWS)
