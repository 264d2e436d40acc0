"""Arrays that are mapped from a file, in every view: the right rows, and no copy of the whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.errors import InputError
from bandana_kv.rows.files import ArrayRows, open_rows
from bandana_kv.rows.mapped import MappedRows, place_of

NUMBERS = np.random.default_rng(0).random((300, 24), np.float32)

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "whole": lambda m: m,
    "columns": lambda m: m[:, :7],
    "a column": lambda m: m[:, 5:6],
    "every second row": lambda m: m[::2],
    "every second column": lambda m: m[:, 1::2],
    "few columns": lambda m: m[:, ::11],
    "transposed": lambda m: m.T,
    "part, transposed": lambda m: m[10:200, ::3].T,
    "rows backwards": lambda m: m[::-1],
    "columns backwards": lambda m: m[:, ::-1],
    "both backwards": lambda m: m[::-3, ::-2],
    "transposed, backwards": lambda m: m.T[::-1, ::-1],
    "reshaped": lambda m: m.reshape(600, 12)[3:],
    "other numbers": lambda m: m.view(np.int16)[:, 1:9],
    "bytes": lambda m: m.view(np.uint8),
    "big-endian": lambda m: m.view(">f4"),
    "real parts": lambda m: m.view(np.complex64).real,
    "repeated row": lambda m: np.broadcast_to(m[3], (50, 24)),
    "repeated column": lambda m: np.broadcast_to(m[:, 3:4], (300, 9)),
    "sliding": lambda m: np.lib.stride_tricks.sliding_window_view(m.reshape(-1), 24)[::5],
    "plain": lambda m: np.asarray(m)[1:],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "numbers.npy", NUMBERS)
    return tmp_path / "numbers.npy"


def gathered(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    with open_rows("t", table) as source:
        assert isinstance(source, MappedRows)
        out = np.empty((ids.size, source.row_bytes), np.uint8)
        source.gather(ids, out)
        return out.view(source.dtype)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_every_view_gives_its_rows_in_any_order(view: str, mode: str, file: Path) -> None:
    table = VIEWS[view](np.load(file, mmap_mode=mode))
    expected = np.array(table)
    for ids in (
        np.arange(len(table)),
        np.random.default_rng(1).permutation(len(table)).astype(np.uint32),
        np.random.default_rng(2).integers(0, len(table), 40),
    ):
        assert gathered(table, ids).tobytes() == expected[ids].tobytes()


SLICES = st.builds(
    slice,
    st.integers(-50, 50) | st.none(),
    st.integers(-50, 50) | st.none(),
    st.integers(-3, 3).filter(bool),
)


@settings(deadline=None)
@given(SLICES, SLICES, st.booleans())
def test_any_slice(tmp_path_factory: pytest.TempPathFactory, a: slice, b: slice, t: bool) -> None:
    file = tmp_path_factory.getbasetemp() / "any.npy"
    if not file.exists():
        np.save(file, NUMBERS[:60])
    mapped = np.load(file, mmap_mode="r")
    table = (mapped.T if t else mapped)[a, b]
    if not table.size:
        return
    expected = (NUMBERS[:60].T if t else NUMBERS[:60])[a, b]
    ids = np.random.default_rng(0).permutation(len(table))
    assert gathered(table, ids).tobytes() == expected[ids].tobytes()


def test_wide_rows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandana_kv.rows.mapped._AT_ONCE_BYTES", 100)
    np.save(tmp_path / "n.npy", NUMBERS)
    table = np.load(tmp_path / "n.npy", mmap_mode="r")[:, ::2]
    assert np.array_equal(gathered(table, np.arange(300)), NUMBERS[:, ::2])


def test_what_changed_in_memory_alone_is_not_read_from_the_file(file: Path) -> None:
    table = np.load(file, mmap_mode="c")
    table[7] = 1
    with open_rows("t", table[:, :5]) as source:
        assert isinstance(source, ArrayRows)
        out = np.empty((1, 20), np.uint8)
        source.gather(np.array([7]), out)
    assert (out.view(np.float32) == 1).all()


def test_what_was_written_through_the_map_is_read(file: Path) -> None:
    table = np.load(file, mmap_mode="r+")
    table[7] = 1
    assert (gathered(table[:, 3:9], np.array([7])) == 1).all()


@pytest.mark.parametrize("gone", ["removed", "replaced"])
def test_a_file_that_is_another_now_is_left_alone(gone: str, file: Path) -> None:
    table = np.load(file, mmap_mode="r")[:, ::2]
    if gone == "removed":
        file.unlink()
    else:
        np.save(file.with_name("new.npy"), NUMBERS + 1)
        file.with_name("new.npy").rename(file)
    assert place_of(table) is None
    bandana_kv.load(file.parent / "store", {"t": table})
    with bandana_kv.open(file.parent / "store") as store:
        assert np.array_equal(store.multi_get("t", range(300)), NUMBERS[:, ::2])


def test_a_file_cut_short_is_an_error_and_not_the_end_of_the_process(file: Path) -> None:
    table = np.load(file, mmap_mode="r")[:, :7]
    with open_rows("t", table) as source:
        with file.open("r+b") as opened:
            opened.truncate(5000)
        with pytest.raises(InputError, match="cannot be read any more"):
            source.gather(np.arange(300), np.empty((300, 28), np.uint8))


def test_arrays_in_memory_are_not_copied_whatever_their_strides() -> None:
    wide = np.zeros((1000, 64), np.float32)
    for table in (wide, wide[:, ::2], wide[::-1], wide.T, np.asfortranarray(wide)):
        with open_rows("t", table) as source:
            out = np.empty((3, source.row_bytes), np.uint8)
            wide[5], wide[:, 7] = 5, 7
            source.gather(np.array([5, 7, 1]), out)
            assert np.array_equal(out.view(np.float32), table[[5, 7, 1]])


SCRIPT = """
import resource, sys
import numpy as np
import bandana_kv
path, table, view = sys.argv[1:]

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

warm = np.load(table, mmap_mode="r")[:2000, :32]
bandana_kv.load(path + "-warm", {"t": warm}, placement="shuffled")
bandana_kv.load(path + "-also", {"t": warm.T}, placement="shuffled")
before = peak_mib()
m = np.load(table, mmap_mode="r")
bandana_kv.load(path, {"t": eval(view)}, placement="shuffled")
print(peak_mib() - before)
"""


@pytest.mark.parametrize("view", ["m[::2, :96]", "m[:, ::2]", "m.T"])
def test_memory_does_not_grow_with_the_file(view: str, tmp_path: Path) -> None:
    shape = (128, 500_000) if view == "m.T" else (800_000, 128)  # 244 or 390 MiB
    table = tmp_path / "rows.npy"
    np.lib.format.open_memmap(table, "w+", np.float32, shape).flush()  # sparse: zeros
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s"), str(table), view],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 200
