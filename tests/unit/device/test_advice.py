"""What a device profile says is what loading and opening do."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

import bandana_kv
from bandana_kv.device import BlockSize, Cell, DeviceProfile, Mount
from bandana_kv.device.advice import DEFAULT_DEPTH, NO_PROFILE, OtherDeviceWarning
from bandana_kv.device.record import FORMAT_VERSION
from bandana_kv.errors import FormatError, InputError

ROWS = np.random.default_rng(5).random((500, 32), np.float32)


def profile_of(directory: Path, block_bytes: int = 4096, depth: int = 7) -> DeviceProfile:
    """Return a profile of the mount that `directory` lies on."""
    cell = Cell(block_bytes, depth, 1, 1e4, 100.0, 90.0, 200.0)
    return DeviceProfile(
        format=FORMAT_VERSION,
        created="2026-01-02T03:04:05+00:00",
        kernel="6.1.0",
        mount=Mount.of(directory),
        engine="io_uring",
        fio_version="3.33",
        quick=True,
        file_bytes=1 << 29,
        cells=(cell,),
        skipped_block_bytes=(),
        sizes=(BlockSize(block_bytes, depth, 1e4, 200.0, True),),
        block_bytes=block_bytes,
        queue_depth=depth,
        jobs=1,
        p99_budget_us=1000.0,
        budget_met=True,
        spread=0.1,
        row_bytes=None,
        writes=None,
    )


@pytest.mark.parametrize("adapter", ["blockfile", "lmdb", "rocksdb"])
@pytest.mark.parametrize(("block_bytes", "pages"), [(512, 1), (4096, 1), (8192, 2), (16384, 4)])
def test_blocks_are_as_long_as_the_profile_says(
    tmp_path: Path, adapter: str, block_bytes: int, pages: int
) -> None:
    profile = profile_of(tmp_path, block_bytes)
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter, profile=profile)
    with bandana_kv.open(tmp_path / "s", cache_bytes=0) as store:
        assert np.array_equal(store.multi_get("user", np.arange(500)), ROWS)
        assert store._reader.depth == 7
        reads = store.stats()["user"]["block_reads"]
    # Engines take a few bytes of the pages for themselves: less than a row.
    per_block = (4096 * pages - 32) // 128
    assert -(-500 // per_block) <= reads <= -(-500 // (per_block - 1))


def test_the_store_keeps_the_profile_for_later_loads_and_opens(tmp_path: Path) -> None:
    profile_of(tmp_path, 8192, 5).write(tmp_path / "device.json")
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=tmp_path / "device.json")
    (tmp_path / "device.json").unlink()
    bandana_kv.load(tmp_path / "s", {"item": ROWS})
    with warnings.catch_warnings(action="error"), bandana_kv.open(tmp_path / "s") as store:
        assert store._reader.depth == 5
        for table in ("user", "item"):
            store.multi_get(table, np.arange(500))
        reads = {name: each["block_reads"] for name, each in store.stats().items()}
    assert reads["user"] == reads["item"] == -(-500 // ((8192 - 32) // 128))


def test_a_profile_and_readers_that_are_named_go_before_the_kept_one(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=profile_of(tmp_path, depth=5))
    with bandana_kv.open(tmp_path / "s", profile=profile_of(tmp_path, depth=9)) as store:
        assert store._reader.depth == 9
    with bandana_kv.open(tmp_path / "s", readers=3) as store:
        assert store._reader.depth == 3


def test_without_a_profile_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS})
    with caplog.at_level(logging.INFO, "bandana_kv"), bandana_kv.open(tmp_path / "s") as store:
        assert store._reader.depth == DEFAULT_DEPTH
    said = [record.getMessage() for record in caplog.records]
    assert said == [NO_PROFILE.format(tmp_path / "s", 16)]


def test_open_warns_when_the_profile_is_of_another_mount(tmp_path: Path) -> None:
    profile = profile_of(tmp_path)
    mount = msgspec.structs.replace(
        profile.mount, device_id=profile.mount.device_id + 1, mount_point="/elsewhere", uuid="x"
    )
    elsewhere = msgspec.structs.replace(profile, mount=mount)
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=elsewhere)
    with pytest.warns(OtherDeviceWarning, match="measured on /elsewhere, another"):
        bandana_kv.open(tmp_path / "s").close()


def test_a_bad_profile_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text("{}")
    with pytest.raises(FormatError, match=r"device\.json"):
        bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=tmp_path / "device.json")
    with pytest.raises((FormatError, InputError), match=r"nowhere\.json"):
        bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="neither a DeviceProfile nor the path"):
        bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=3)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_a_damaged_kept_profile_is_named(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, profile=profile_of(tmp_path))
    (tmp_path / "s" / "device.json").write_text("torn")
    with pytest.raises(FormatError, match=r"s/device\.json"):
        bandana_kv.open(tmp_path / "s")
