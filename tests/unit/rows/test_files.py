"""Rows out of arrays and .npy files; every unfit file refused before anything is written."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.rows.files import NpyRows, open_rows

ROWS = np.random.default_rng(0).random((300, 8), np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, version: tuple[int, int]) -> None:
    with open(tmp_path / "rows.npy", "wb") as opened:
        np.lib.format.write_array(opened, ROWS, version)
    for count in (0, 1, 5, 1000):
        ids = np.random.default_rng(count).integers(0, 300, count).astype(np.uint32)
        for table in (ROWS, tmp_path / "rows.npy", str(tmp_path / "rows.npy"), ROWS[::-1][::-1]):
            out = np.empty((count, 32), np.uint8)
            with open_rows("user", table) as source:
                assert (source.rows, source.dim, source.row_bytes) == (300, 8, 32)
                source.gather(ids, out)
            assert out.tobytes() == ROWS[ids].tobytes()


def test_bytes_after_the_rows_do_no_harm(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")
    with NpyRows(file) as source:
        assert source.rows == 300


def test_a_file_cut_short_while_it_is_read_is_an_error(file: Path) -> None:
    with NpyRows(file) as source:
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(InputError, match=r"rows\.npy: row \d+ cannot be read any more"):
            source.gather(np.arange(300), np.empty((300, 32), np.uint8))


UNFIT = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated: .*promises"),
    "headless": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v"), "not a readable .npy"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable .npy"),
    "text": (lambda path: path.write_text("1,2,3\n"), "not a readable .npy"),
    "fortran": (lambda path: np.save(path, np.asfortranarray(ROWS)), "Fortran order"),
    "objects": (lambda path: np.save(path, np.array([[{}]], object)), "not numeric"),
    "text rows": (lambda path: np.save(path, np.array([["a", "b"]])), "not numeric"),
    "dates": (lambda path: np.save(path, np.zeros((2, 2), "M8[s]")), "not numeric"),
    "records": (lambda path: np.save(path, np.zeros((2, 2), "f4,f4")), "not numeric"),
    "one dimension": (lambda path: np.save(path, ROWS[0]), r"shape \(8,\) is not \(rows, dim\)"),
    "three": (lambda path: np.save(path, ROWS[None]), r"shape \(1, 300, 8\)"),
    "no rows": (lambda path: np.save(path, ROWS[:0]), "holds no row"),
    "no columns": (lambda path: np.save(path, ROWS[:, :0]), "holds no row"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_unfit_file_is_named_and_nothing_is_left_behind(file: Path, what: str) -> None:
    make, said = UNFIT[what]
    make(file)
    with pytest.raises(InputError, match=said) as raised:
        bandana_kv.load(file.parent / "store", {"user": file})
    assert str(file) in str(raised.value)
    assert not (file.parent / "store").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (ROWS[0], "is not (rows, dim)"),
        (ROWS[:0], "holds no row"),
        (np.array([[None]]), "not numeric"),
        (np.lib.stride_tricks.as_strided(ROWS, (1 << 31, 8), (0, 4)), "less than 2**31"),
        (np.zeros((1, (1 << 20) + 1), np.int8), "at most 1048576"),
        (ROWS.tolist(), "list is neither an array nor the path"),
        ("rows.csv", "is of no kind that is read"),
    ],
)
def test_an_unfit_table_is_named(tmp_path: Path, table: object, said: str) -> None:
    with pytest.raises(InputError) as raised:
        bandana_kv.load(tmp_path / "store", {"user": table})
    assert said in str(raised.value)
    assert "'user'" in str(raised.value)
    assert not (tmp_path / "store").exists()


HEADER = 128
FIELDS = b"{'descr': '<f4', 'fortran_order': False, 'shape': (300, 8)}".ljust(117) + b"\n"
IMAGE = np.lib.format.magic(1, 0) + b"\x76\x00" + FIELDS + ROWS.tobytes()


@given(
    st.lists(
        st.tuples(st.integers(0, HEADER - 1), st.sampled_from(b"([{'\"\\\n0L-,9\x00\xff")),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_header_ends_in_our_error_or_in_a_table(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    image = bytearray(IMAGE)
    for at, byte in damage:
        image[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(image)
    with contextlib.suppress(BandanaError):
        NpyRows(path).close()
