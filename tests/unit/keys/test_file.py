"""Index files that are torn, cut, or have flipped bits: told, and never answered from wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandana_kv.errors import BandanaError, DurabilityError, FormatError
from bandana_kv.keys import KeyIndex, build_index
from bandana_kv.keys.file import Header, pack
from bandana_kv.keys.slots import SPARE_SLOTS

KEYS = np.random.default_rng(0).integers(0, 1 << 63, 500).astype(np.uint64)
STEP = 97


@pytest.fixture(params=["uint64", "str"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    words = KEYS if request.param == "uint64" else np.stack([KEYS, KEYS], axis=1)
    build_index(tmp_path / "keys-1", request.param, words)
    return tmp_path / "keys-1"


def words_for(index: KeyIndex) -> Any:
    return KEYS if index.kind == "uint64" else np.stack([KEYS, KEYS], axis=1)


def opened_and_verified(path: Path) -> None:
    KeyIndex.open(path).verify()


def test_every_length_but_its_own_is_noticed(path: Path) -> None:
    raw = path.read_bytes()
    for size in [*range(0, len(raw), STEP), 127, 128, len(raw) - 1, len(raw) + 1]:
        path.write_bytes(raw[:size].ljust(size, b"\0"))
        with pytest.raises(FormatError, match="keys-1"):
            KeyIndex.open(path)


def test_what_was_never_written_is_noticed(path: Path) -> None:
    """As a machine that went down may leave a file: of full length, and zeros from somewhere."""
    raw = path.read_bytes()
    for size in range(0, len(raw) - 4 * SPARE_SLOTS * 5, STEP):
        path.write_bytes(raw[:size].ljust(len(raw), b"\0"))
        with pytest.raises(FormatError, match="keys-1"):
            opened_and_verified(path)


@pytest.mark.parametrize("flipped", [0x01, 0x80, 0xFF])
def test_every_flipped_bit_is_noticed(path: Path, flipped: int) -> None:
    raw = path.read_bytes()
    for byte in [*range(128), *range(128, len(raw), STEP), len(raw) - 1]:
        torn = bytearray(raw)
        torn[byte] ^= flipped
        path.write_bytes(torn)
        with pytest.raises(FormatError, match="keys-1"):
            opened_and_verified(path)
        if byte < 128:
            with pytest.raises(FormatError, match="keys-1"):
                KeyIndex.open(path)


@pytest.mark.parametrize("filled", [b"\x00", b"\x01", b"\xff"])
def test_slots_that_nobody_verified_lead_nowhere(path: Path, filled: bytes) -> None:
    """Kernels stay inside of the file, and give no id that no key has."""
    raw = path.read_bytes()
    path.write_bytes(raw[:128] + filled * (len(raw) - 128))
    index = KeyIndex.open(path)
    for ask in (lambda: index.ids_of(words_for(index)), index.keys_in_order):
        try:
            answered = ask()
        except FormatError as error:
            assert "keys-1" in str(error)  # noqa: PT017
        else:
            assert filled == b"\xff"  # all are empty
            assert (answered == -1).all()


def test_another_file_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"BKVA" + bytes(1000))
    with pytest.raises(FormatError, match=r"other: not an index of keys, or torn"):
        KeyIndex.open(tmp_path / "other")
    with pytest.raises(FormatError, match=r"nothing: cannot be read \(No such file"):
        KeyIndex.open(tmp_path / "nothing")
    with pytest.raises(FormatError, match=r"cannot be read \(Is a directory"):
        KeyIndex.open(tmp_path)


def test_a_newer_format_says_so(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="format 2 is newer than this release reads"):
        KeyIndex.open(path)


def test_a_header_that_contradicts_itself_is_refused(path: Path) -> None:
    header = Header("uint64", 10, 20 + SPARE_SLOTS, 21, 0, 0, 0)
    path.write_bytes(pack(header) + bytes(header.data_bytes))
    with pytest.raises(FormatError, match="has no room for its keys"):
        KeyIndex.open(path)


def test_an_open_index_stays_what_it_is(path: Path) -> None:
    index = KeyIndex.open(path)
    build_index(path, "uint64", KEYS[:10])
    assert np.array_equal(index.ids_of(words_for(index)), np.arange(KEYS.size))
    with pytest.raises(FormatError, match="is another than was opened"):
        index.verify()
    assert KeyIndex.open(path).keys == 10


def test_what_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def failing(handle: int, named: Path) -> None:
        raise DurabilityError(5, f"{named}: the device did not")

    monkeypatch.setattr("bandana_kv.keys.build.sync_file", failing)
    with pytest.raises(BandanaError, match="keys-1: the device did not"):
        build_index(path, "uint64", KEYS[:10])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
