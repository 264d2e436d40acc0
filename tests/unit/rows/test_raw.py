"""Rows of files of bare numbers, as the user says they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.table import BFLOAT16

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
Rows = Callable[[object], np.ndarray]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rows.bin").write_bytes(ROWS.tobytes())
    return tmp_path / "rows.bin"


@pytest.mark.parametrize("name", ["rows.bin", "rows.dat", "rows", "rows:1"])
def test_rows_come_whatever_the_name(name: str, file: Path, rows_of: Rows, served: Rows) -> None:
    path = file.rename(file.with_name(name))
    assert np.array_equal(rows_of(f"{path}:float32:300x8"), ROWS)
    assert np.array_equal(rows_of(f"{path}:>i2:600x8"), ROWS.view(">i2").reshape(600, 8))
    assert np.array_equal(served(f"{path}:<f4:300x8"), ROWS)


def test_bfloat16(tmp_path: Path) -> None:
    rows = ROWS.astype(BFLOAT16)
    (tmp_path / "rows.bin").write_bytes(rows.tobytes())
    with open_rows("user", f"{tmp_path / 'rows.bin'}:bfloat16:300x8") as source:
        out = np.empty((1, 16), np.uint8)
        source.gather(np.array([7]), out)
        assert source.dtype == BFLOAT16
        assert out.tobytes() == rows[7].tobytes()


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (":float32:300x9", "is 9600 bytes long, and 300x9 of float32 are 10800"),
        (":float32:299x8", "is 9600 bytes long, and 299x8 of float32 are 9568"),
        (":float64:300x8", "9600 bytes long"),
        (":float33:300x8", "'float33' is no dtype"),
        (":O:150x8", "dtype object is not numeric"),
        (":f4,f4:150x8", "not numeric"),
        (":S4:300x8", "not numeric"),
        (":V4:300x8", "not numeric"),
        (":float32:0x8", "9600 bytes long"),
        (":float32:999999999999999999x999999999999999999", "9600 bytes long"),
        (":float32", "no checkpoint as torch writes.*:float32:1000x64"),
        ("", "no checkpoint as torch writes"),
    ],
)
def test_what_does_not_fit_is_refused(said: str, wrong: str, file: Path) -> None:
    with pytest.raises(InputError, match=wrong):
        open_rows("user", f"{file}{said}")


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.bin: cannot be opened \(No such file"):
        open_rows("user", f"{tmp_path}/a.bin:float32:1x1")
    with pytest.raises(InputError, match="Is a directory"):
        open_rows("user", f"{tmp_path}:float32:1x1")
