"""Numbers of an update: those that the table's dtype can hold go in, the first other is named."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bandana_kv
from bandana_kv.errors import InputError
from bandana_kv.serve.arguments import checked_numbers

INF, NAN = math.inf, math.nan


def updated(path: Path, dtype: str, rows: Any) -> np.ndarray:
    """Update rows 1 to n of a table of ones; return all of them as another process sees them."""
    bandana_kv.load(path, {"t": np.ones((4, 2), dtype)})
    with bandana_kv.open(path) as store, warnings.catch_warnings(action="error"):
        try:
            store.update("t", np.arange(1, 1 + len(rows)), rows)
        finally:
            with bandana_kv.open(path) as other:
                assert np.array_equal(
                    other.multi_get("t", range(4)), store.multi_get("t", range(4)), equal_nan=True
                )
        return store.multi_get("t", range(4))


@pytest.mark.parametrize(
    ("dtype", "rows", "said"),
    [
        ("int8", np.array([[1, 300]]), r"300 does not fit int8 \(row 0, of id 1, column 1\)"),
        ("int8", np.array([[1, 200]], np.uint8), "200 does not fit int8"),
        ("int8", np.array([[1, 2], [-129, 4]], np.int16), r"-129 .*\(row 1, of id 2, column 0\)"),
        ("uint8", np.array([[-1, 0]], np.int8), "-1 does not fit uint8"),
        ("uint8", [[256, 1]], "256 does not fit uint8"),
        ("uint64", [[-1, 1]], "-1 does not fit uint64"),
        ("int64", np.array([[0, 2**63]], np.uint64), f"{2**63} does not fit int64"),
        (">i2", [[1, 1 << 15]], "32768 does not fit >i2"),
        ("float16", np.array([[1, 1e5]], np.float32), "100000.0 does not fit float16"),
        ("float16", [[70000, 1]], "70000 does not fit float16"),
        ("float16", [[1.0, 65520.0]], "65520.0 does not fit float16"),
        ("float32", [[1.0, -1e39]], r"-1e\+39 does not fit float32"),
        ("complex64", [[1.0, 1e39j]], "does not fit complex64"),
        ("complex64", [[1e39, 1.0]], "does not fit complex64"),
        ("int32", [[1.5, 2.0]], "of int32, not .* of float64"),
        ("int32", [[NAN, 2.0]], "of int32, not .* of float64"),
        ("bool", [[2, 0]], "of bool, not .* of int64"),
        ("bool", [[0.5, 0.0]], "of bool, not .* of float64"),
        ("float32", [[1j, 0]], "of complex128"),
        ("float32", [["1", "2"]], "of <U1"),
        ("float32", [[None, 1.0]], "of object"),
        ("uint64", [[1 << 64, 1]], "of object"),
        ("uint64", [[1 << 63, -1]], "not an array of numbers"),
        ("int64", [[1 << 63, 1]], f"{1 << 63} does not fit int64"),
        ("uint64", [[float(1 << 63), 1]], "of uint64, not .* of float64"),
        ("float32", [[Fraction(1), 1]], "of object"),
        ("float32", [[1.0], [1.0, 2.0]], "not an array of numbers"),
        ("int64", np.array([[1, 2]], "M8[s]"), r"of datetime64\[s\]"),
        ("int64", np.array([[1, 2]], "m8[s]"), r"of timedelta64\[s\]"),
    ],
)
def test_what_the_dtype_cannot_hold_is_refused_and_nothing_changes(
    dtype: str, rows: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        updated(tmp_path, dtype, rows)
    with bandana_kv.open(tmp_path) as store:
        assert np.array_equal(store.multi_get("t", range(4)), np.ones((4, 2), dtype))


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        ("uint8", [[200, 1]]),
        ("uint8", [[0, 255]]),
        ("uint8", np.array([[0, 255]], np.uint64)),
        ("uint8", np.array([[0, 127]], np.int8)),
        ("int8", np.array([[0, 127]], np.uint8)),
        ("int8", [[-128, 127]]),
        ("int8", np.array([[-128, 127]], ">i8")),
        ("uint64", [[1 << 63, 1]]),
        ("uint64", np.array([[1, 2]], np.int8)),
        ("int64", [[-(1 << 63), (1 << 63) - 1]]),
        ("int16", [[True, False]]),
        ("bool", [[True, False]]),
        ("float16", [[65504, -65504]]),
        ("float16", [[INF, -INF]]),
        ("float32", [[NAN, 0.5]]),
        ("float32", np.array([[1, 2]], np.uint64)),
        (">f4", np.array([[0.25, 2]], np.float16)),
        ("complex64", [[1.0, 2.0]]),
        ("complex64", [[INF, NAN]]),
    ],
)
def test_what_fits_goes_in_whatever_it_comes_in(dtype: str, rows: Any, tmp_path: Path) -> None:
    assert np.array_equal(updated(tmp_path, dtype, rows)[1:2], np.array(rows), equal_nan=True)


def test_floats_are_rounded(tmp_path: Path) -> None:
    found = updated(tmp_path, "float16", [[0.1, 1e-30], [65519.0, 2049]])[1:3]
    assert np.array_equal(found, np.array([[0.1, 0.0], [65504.0, 2048.0]], np.float16))


INTEGERS = st.sampled_from([f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)])


@given(st.data(), INTEGERS, INTEGERS)
def test_integers_are_taken_exactly_if_python_says_that_they_fit(
    data: st.DataObject, given_dtype: str, dtype: str
) -> None:
    rows = data.draw(hnp.arrays(given_dtype, (2, 3)))
    held = np.iinfo(dtype)
    try:
        cast = checked_numbers("t", np.arange(2), 3, np.dtype(dtype), rows)
    except InputError:
        assert not all(held.min <= each <= held.max for each in rows.ravel().tolist())
    else:
        assert cast.tolist() == rows.tolist()
