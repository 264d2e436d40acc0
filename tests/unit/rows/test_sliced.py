"""Rows of objects with a shape and slicing, as datasets of h5py are."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import DiskFullError, InputError
from bandana_kv.rows import staged
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.sliced import SlicedRows

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
Rows = Callable[[object], np.ndarray]


class Dataset:
    """What a dataset of h5py shows of itself."""

    chunks = (70, 8)

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.shape = rows.shape
        self.dtype = rows.dtype
        self.asked: list[slice] = []

    def __getitem__(self, part: slice) -> Any:
        self.asked.append(part)
        return self.rows[part]


class Undescribed(Dataset):
    """Of a dtype of its own, as tensors are."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__(rows)
        self.dtype = "its own"
        self.chunks = None


@pytest.mark.parametrize("kind", [Dataset, Undescribed])
def test_rows_come_in_any_order_and_are_served(
    kind: type[Dataset], rows_of: Rows, served: Rows
) -> None:
    assert np.array_equal(rows_of(kind(ROWS)), ROWS)
    assert np.array_equal(served(kind(ROWS)), ROWS)


def test_each_chunk_is_read_once(monkeypatch: pytest.MonkeyPatch, rows_of: Rows) -> None:
    monkeypatch.setattr(staged, "AT_ONCE_BYTES", 5000)
    dataset = Dataset(ROWS)
    assert np.array_equal(rows_of(dataset), ROWS)
    assert dataset.asked == [slice(0, 140), slice(140, 280), slice(280, 300)]


def test_nothing_is_read_for_the_shape() -> None:
    dataset = Dataset(ROWS)
    with open_rows("user", dataset) as source:
        assert (source.rows, source.dim, source.dtype) == (300, 8, np.float32)
    assert dataset.asked == []


class Failing(Dataset):
    def __getitem__(self, part: slice) -> Any:
        raise KeyError("no filter")


class Short(Dataset):
    def __getitem__(self, part: slice) -> Any:
        return self.rows[part][:-1]


class Other(Dataset):
    def __getitem__(self, part: slice) -> Any:
        return self.rows[part].astype(np.float64)


class Scalar(Dataset):
    def __getitem__(self, part: slice) -> Any:
        return np.float32(1)


class Masked(Dataset):
    def __getitem__(self, part: slice) -> Any:
        return np.ma.masked_array(self.rows[part])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Dataset(ROWS[0]), r"shape \(8,\) is not"),
        (Dataset(np.array([["a"]])), "not numeric"),
        (Dataset(np.array([[{}]], object)), "not numeric"),
        (Failing(ROWS), r"rows 0 to 299 cannot be read \(KeyError: 'no filter'\)"),
        (Short(ROWS), "truncated: 299 rows, not 300"),
        (Other(ROWS), "gives float64 of shape .* is to be 300 rows of 8 float32"),
        (Scalar(ROWS), r"gives float32 of shape \(\)"),
        (Masked(ROWS), "masked"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_is_wrong_names_the_table_and_leaves_nothing(
    given: Dataset, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    with pytest.raises(InputError, match=f"'user'.*{said}"):
        bandana_kv.load(tmp_path / "s", {"user": given})
    assert [path.name for path in tmp_path.rglob("*")] == ["t"]


def test_a_full_disk_names_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(SlicedRows, "_unnamed", lambda _: Full())
    with open_rows("user", Dataset(ROWS)) as source, pytest.raises(DiskFullError, match="TMPDIR"):
        source.gather(np.arange(3), np.empty((3, 32), np.uint8))


def test_no_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with open_rows("user", Dataset(ROWS)) as source, pytest.raises(InputError, match="TMPDIR"):
        source.gather(np.arange(3), np.empty((3, 32), np.uint8))
