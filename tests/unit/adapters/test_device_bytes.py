"""What the process really reads from the device for one block, cold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import Adapter, block_keys, create, open_existing
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096
BLOCKS = 20_000
READS = 10_000


def read_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path`."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [m for m in mounts if path.is_relative_to(m[1])]
    return max(holding, key=lambda mount: len(mount[1]))[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    try:
        read_bytes()
    except (OSError, KeyError):
        pytest.skip("this system does not say how many bytes a process read")
    kind = file_system_of(tmp_path)
    if kind not in ("ext4", "ext3", "xfs", "btrfs", "f2fs"):
        pytest.skip(f"{kind} does not account for reads of a device")
    return tmp_path / "store"


def load(adapter: Adapter) -> None:
    def batches() -> object:
        for at in range(0, BLOCKS, 1000):
            keys = block_keys(1, np.arange(at, at + 1000))
            yield keys, payloads_for(keys, adapter.payload_bytes)

    adapter.bulk_load(batches(), BLOCKS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["blockfile", "lmdb", "rocksdb"])
def test_a_cold_get_reads_one_page(name: str, folder: Path) -> None:
    def load_and_close() -> bool:
        # In a process of its own: pages that are mapped here would not be dropped.
        with create(name, folder, size_hint_bytes=BLOCKS * PAGE) as adapter:
            load(adapter)
        return True

    assert in_child(load_and_close)
    drop_from_page_cache(folder)
    chosen = np.random.default_rng(0).choice(BLOCKS, READS, replace=False)
    keys = block_keys(1, np.sort(chosen))
    with open_existing(name, folder) as adapter:
        before = read_bytes()
        for part in np.array_split(keys, 50):
            adapter.multi_get(part)
        pages = (read_bytes() - before) / PAGE / READS
    # The pages of an index that is read on the way count; hence a little above one.
    assert 0.99 <= pages <= 1.02
