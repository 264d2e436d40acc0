"""The block format: what is written is what docs/block-format.md says, and damage shows."""

import struct

import numpy as np
import pytest
import xxhash

from bandana_kv.disk import blocks
from bandana_kv.errors import BlockCorruptError, InputError
from bandana_kv.kernels.checksum import xxh64

ROWS, PER_BLOCK, ROW_BYTES, SPACE, PAYLOAD = 70, 31, 128, 5, 4063


@pytest.fixture
def sealed() -> np.ndarray:
    payloads = np.zeros((3, PAYLOAD), np.uint8)
    payloads[:, 32:] = np.random.default_rng(0).integers(0, 256, (3, PAYLOAD - 32))
    blocks.seal(payloads, SPACE, np.arange(3), ROWS, 0, PER_BLOCK, ROW_BYTES)
    return payloads


def verify(payloads: np.ndarray, numbers: tuple[int, ...] = (0, 1, 2)) -> None:
    wanted = np.array(numbers)
    blocks.verify(payloads, SPACE, wanted, ROWS, 0, PER_BLOCK, ROW_BYTES, "user")


@pytest.mark.parametrize("size", [*range(100), 4055, 4063, 4072])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_checksum_is_the_one_of_the_xxhash_package(size: int, shift: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size + shift, np.uint8)[shift:]
    assert int(xxh64(data)) == xxhash.xxh64_intdigest(data.tobytes())


def test_header_is_as_documented(sealed: np.ndarray) -> None:
    for number, rows in ((0, 31), (1, 31), (2, 8)):
        raw = sealed[number].tobytes()
        checksum, *fields = struct.unpack_from("<Q4sHHIIQ", raw)
        assert fields == [b"BKVB", 1, rows, ROW_BYTES, SPACE, number]
        assert checksum == xxhash.xxh64_intdigest(raw[8:])


def test_blocks_of_copies_follow_those_of_the_table() -> None:
    payloads = np.zeros((5, PAYLOAD), np.uint8)
    numbers = np.arange(5)
    blocks.seal(payloads, SPACE, numbers, ROWS, 40, PER_BLOCK, ROW_BYTES)
    rows = [struct.unpack_from("<8x4sHH", payload.tobytes())[2] for payload in payloads]
    assert rows == [31, 31, 8, 31, 9]
    blocks.verify(payloads, SPACE, numbers, ROWS, 40, PER_BLOCK, ROW_BYTES, "user")


def test_intact_blocks_pass(sealed: np.ndarray) -> None:
    verify(sealed)
    verify(sealed[1:2], (1,))


@pytest.mark.parametrize("byte", [0, 8, 12, 14, 16, 20, 24, 31, 32, 100, PAYLOAD - 1])
def test_any_flipped_bit_is_noticed(sealed: np.ndarray, byte: int) -> None:
    sealed[1, byte] ^= 0x10
    with pytest.raises(BlockCorruptError, match=r"table 'user', block 1: its checksum"):
        verify(sealed)


def resealed(payload: np.ndarray) -> np.ndarray:
    """A block whose checksum fits what it holds: only its meaning can give it away."""
    payload[:8] = np.frombuffer(xxhash.xxh64_digest(payload[8:].tobytes())[::-1], np.uint8)
    return payload


@pytest.mark.parametrize(
    ("byte", "says"),
    [
        (8, "not a bandana_kv block"),
        (12, "format version"),
        (14, "row count"),
        (16, "row size"),
        (20, "another table, version"),
        (24, "block number"),
    ],
)
def test_a_sound_block_of_something_else_is_noticed(
    sealed: np.ndarray, byte: int, says: str
) -> None:
    sealed[1, byte] ^= 1
    resealed(sealed[1])
    with pytest.raises(BlockCorruptError, match=says):
        verify(sealed)


def test_a_block_under_another_key_is_noticed(sealed: np.ndarray) -> None:
    with pytest.raises(BlockCorruptError, match="block 2: it belongs to another"):
        verify(sealed, (0, 2, 1))


def test_rows_per_block() -> None:
    assert blocks.rows_per_block(4080, 128) == 31
    assert blocks.rows_per_block(4096, 4064) == 1
    with pytest.raises(InputError, match="4065 bytes does not fit"):
        blocks.rows_per_block(4096, 4065)


def test_bad_blocks_beside_each_other_are_all_named() -> None:
    payloads, labels = np.zeros((5, 4096), np.uint8), np.arange(5)
    blocks.seal(payloads, 1, labels, 50, 0, 10, 16)
    payloads[1:4, 40] ^= 1
    assert list(blocks.bad_blocks(payloads, 1, labels, 50, 0, 10, 16)) == [1, 2, 3]
