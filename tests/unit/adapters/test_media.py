"""Full disks and media mounted read-only, on a file system made for the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import Adapter, block_keys, create, open_existing
from bandana_kv.errors import AdapterError, BlockMissingError, DiskFullError
from bandana_kv.testing import payloads_for

ENGINES = ["blockfile", "lmdb", "rocksdb"]


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mounting is not allowed here: {error.stderr.strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Give the root of a file system of 64 MiB."""
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path))
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def batches(adapter: Adapter, space: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for at in range(0, count, 500):
        keys = block_keys(space, np.arange(at, min(count, at + 500)))
        yield keys, payloads_for(keys, adapter.payload_bytes)


def check(adapter: Adapter, space: int, count: int) -> None:
    keys = block_keys(space, np.arange(count))
    expected = payloads_for(keys, adapter.payload_bytes)
    np.testing.assert_array_equal(adapter.multi_get(keys), expected)


def put_until_full(adapter: Adapter, space: int) -> tuple[int, DiskFullError]:
    """Return how many blocks were written, and the error that ended it."""
    written = 0
    for keys, payloads in batches(adapter, space, 30_000):
        try:
            adapter.put_many(keys, payloads)
        except DiskFullError as error:
            return written, error
        written += len(keys)
    raise AssertionError("the disk never filled")


@pytest.mark.parametrize("name", ENGINES)
def test_a_full_disk_is_told_and_harms_nothing(name: str, small: Path) -> None:
    ballast = small / "ballast"
    ballast.write_bytes(bytes(24 << 20))
    with create(name, small / "store", size_hint_bytes=1 << 20) as adapter:
        adapter.bulk_load(batches(adapter, 1, 1000), 1000)
        with pytest.raises(DiskFullError, match=f"{name} at .*: no room for more"):
            adapter.bulk_load(batches(adapter, 2, 30_000), 30_000)
        adapter.delete_space(2)
        written, error = put_until_full(adapter, 3)
        assert str(error).startswith(f"{name} at {small / 'store'}: no room for more")
        with pytest.raises(BlockMissingError):
            adapter.get(int(block_keys(3, written)))
        check(adapter, 1, 1000)
        check(adapter, 3, written)
    with open_existing(name, small / "store") as adapter:
        check(adapter, 1, 1000)
        check(adapter, 3, written)
    ballast.unlink()
    with open_existing(name, small / "store", read_only=False) as adapter:
        adapter.delete_space(3)
        adapter.bulk_load(batches(adapter, 4, 100), 100)
        check(adapter, 4, 100)


@pytest.mark.parametrize("name", ENGINES)
def test_media_mounted_read_only(name: str, small: Path) -> None:
    with create(name, small / "store", size_hint_bytes=1 << 20) as adapter:
        adapter.bulk_load(batches(adapter, 1, 100), 100)
        adapter.put_many(block_keys(2, [1]), np.zeros((1, adapter.payload_bytes), np.uint8))
    mount("-o", "remount,ro", str(small))
    with open_existing(name, small / "store") as adapter:
        assert adapter.capabilities.read_only_media
        check(adapter, 1, 100)
        assert not adapter.space_is_empty(2)
    with pytest.raises(AdapterError, match="cannot be opened"):
        open_existing(name, small / "store", read_only=False)
    with pytest.raises(AdapterError, match="cannot make the directory"):
        create(name, small / "another", size_hint_bytes=1 << 20)
