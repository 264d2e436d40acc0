"""A file of rows that is larger than the memory limit loads, whatever its kind.

The limit is one of the system where this user may set one, a memory cgroup, and always one of the
process, RLIMIT_DATA.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = """
import os, resource, sys, threading
import numpy as np
import bandana_kv

def own_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])

def load_and_look(store, table):
    bandana_kv.load(store, {"t": table}, placement="identity")
    with bandana_kv.open(store, cache_bytes=1 << 20) as opened:
        rows, dim = opened.shape("t")
        found = opened.multi_get("t", [0, 1, rows // 2, rows - 1])
        assert found[:, 0].tolist() == [1, 0, 0, 2], found[:, 0]
        return rows, dim

small, large, store, limit_bytes, mapped_bytes, group = sys.argv[1:]
threading.stack_size(256 << 10)  # of tens of threads they count as memory, used or not
load_and_look(store + "-small", small)  # imports, and compiles what is not kept
limit = own_bytes() + int(limit_bytes) + int(mapped_bytes)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if group:
    # What was taken before is counted elsewhere; from here on, what is mapped and cached, too.
    with open(group, "w") as file:
        file.write(str(os.getpid()))
assert load_and_look(store, large) == (1_000_000, 128)
"""
SHAPE = (1_000_000, 128)  # 512 MB
LIMIT_BYTES = 256 << 20
Shape = tuple[int, int]


def parts(shape: Shape) -> Iterator[np.ndarray]:
    """Yield a table whose first number is 1, of its last row 2, and all else 0."""
    rows = np.zeros((shape[0] // 10, shape[1]), np.float32)
    first, last = rows.copy(), rows.copy()
    first[0, 0], last[-1, 0] = 1, 2
    yield from (first, *[rows] * 8, last)


def write_sparse(path: Path, before: bytes, shape: Shape) -> None:
    """Write the table behind `before`; zeros take no room on the device."""
    path.write_bytes(before)
    nbytes = shape[0] * shape[1] * 4
    with path.open("r+b") as file:
        file.truncate(len(before) + nbytes)
        for at, number in ((0, 1), (nbytes - 4 * shape[1], 2)):
            file.seek(len(before) + at)
            file.write(np.float32(number).tobytes())


def write_npy(path: Path, shape: Shape) -> str:
    np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
    begin = path.stat().st_size - shape[0] * shape[1] * 4
    with path.open("rb") as file:
        header = file.read(begin)
    write_sparse(path, header, shape)
    return str(path)


def write_npz(path: Path, shape: Shape) -> str:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("t.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts(shape):
            stream.write(part)
    return str(path)


def write_raw(path: Path, shape: Shape) -> str:
    write_sparse(path, b"", shape)
    return f"{path}:float32:{shape[0]}x{shape[1]}"


def write_safetensors(path: Path, shape: Shape) -> str:
    places = f'"data_offsets":[0,{shape[0] * shape[1] * 4}]'
    header = f'{{"t":{{"dtype":"F32","shape":[{shape[0]},{shape[1]}],{places}}}}}'.encode()
    write_sparse(path, len(header).to_bytes(8, "little") + header, shape)
    return str(path)


def write_checkpoint(path: Path, shape: Shape) -> str:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(shape)
    tensor[0, 0], tensor[-1, 0] = 1, 2
    torch.save({"t": tensor}, path)
    return str(path)


def lists(part: np.ndarray) -> Any:
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(part.reshape(-1), part.shape[1])
    return pa.table({"t": column})


def write_parquet(path: Path, shape: Shape) -> str:
    pq = pytest.importorskip("pyarrow.parquet")
    how = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(path, lists(next(parts(shape))).schema, **how) as writer:
        for part in parts(shape):
            writer.write_table(lists(part))
    return str(path)


def write_arrow(path: Path, shape: Shape) -> str:
    ipc = pytest.importorskip("pyarrow.ipc")
    with ipc.new_file(path, lists(next(parts(shape))).schema) as writer:
        for part in parts(shape):
            writer.write_table(lists(part))
    return str(path)


def write_zarr(path: Path, shape: Shape) -> str:
    zarr = pytest.importorskip("zarr")
    made = zarr.create_array(
        path,
        shape=shape,
        dtype="float32",
        chunks=(shape[0] // 100, shape[1]),
        compressors=None,
        config={"write_empty_chunks": True},
    )
    step = shape[0] // 10
    for at, part in enumerate(parts(shape)):
        made[at * step : (at + 1) * step] = part
    return str(path)


WRITERS: dict[str, Callable[[Path, Shape], str]] = {
    "npy": write_npy,
    "npz": write_npz,
    "bin": write_raw,
    "safetensors": write_safetensors,
    "pt": write_checkpoint,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "zarr": write_zarr,
}


@contextlib.contextmanager
def limited_group() -> Iterator[str]:
    """Give the file by which a process joins a group of limited memory; "": there can be none."""
    root = Path("/sys/fs/cgroup")
    if (root / "memory").is_dir():
        group, limit = root / "memory" / f"bandana-kv-{os.getpid()}", "memory.limit_in_bytes"
    else:
        group, limit = root / f"bandana-kv-{os.getpid()}", "memory.max"
    try:
        group.mkdir()
    except OSError:
        yield ""
        return
    try:
        joined = str(group / "cgroup.procs")
        try:
            (group / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            joined = ""
        yield joined
    finally:
        group.rmdir()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_larger_than_memory_loads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    small = WRITERS[kind](tmp_path / f"small.{kind}", (1000, 128))
    large = WRITERS[kind](tmp_path / f"large.{kind}", SHAPE)
    # torch maps a checkpoint as its own, which this limit counts, though no page becomes memory.
    mapped_bytes = SHAPE[0] * SHAPE[1] * 4 if kind == "pt" else 0
    with limited_group() as group:
        given = (small, large, str(tmp_path / "store"), str(LIMIT_BYTES), str(mapped_bytes), group)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *given],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr[-2000:] or done.returncode
    assert not list((tmp_path / "temporary").iterdir())
