"""Array files: mapped as written, and refused in every damaged form."""

from pathlib import Path

import numpy as np
import pytest

from bandana_kv.disk.arrays import map_array, write_array
from bandana_kv.errors import FormatError

NUMBERS = np.random.default_rng(0).integers(0, 1 << 32, 1000).astype(np.uint32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_array(tmp_path / "positions-1", "positions", NUMBERS)
    return tmp_path / "positions-1"


def test_round_trip_is_read_only(path: Path) -> None:
    mapped = map_array(path, "positions", np.uint32, 1000)
    assert np.array_equal(mapped, NUMBERS)
    assert not mapped.flags.writeable


@pytest.mark.parametrize("byte", [0, 4, 8, 25, 33, 41, 49, 64, 2000, 4063])
def test_every_flipped_bit_is_noticed(path: Path, byte: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 0x40
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="positions-1"):
        map_array(path, "positions", np.uint32, 1000)


@pytest.mark.parametrize("size", [0, 10, 63, 64, 4063, 4065])
def test_another_length_is_noticed(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(FormatError, match="positions-1"):
        map_array(path, "positions", np.uint32, 1000)


def test_another_array_is_noticed(path: Path) -> None:
    for kind, dtype, items in (
        ("heat", np.uint32, 1000),
        ("positions", np.int32, 1000),
        ("positions", np.uint32, 999),
    ):
        with pytest.raises(FormatError, match="holds 1000 positions as <u4"):
            map_array(path, kind, dtype, items)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing: cannot be read \(No such file"):
        map_array(tmp_path / "nothing", "heat", np.uint8, 1)
