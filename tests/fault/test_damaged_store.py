"""Flipped bits and exchanged blocks: an error that names table and block, never a wrong row."""

from __future__ import annotations

import shutil
from pathlib import Path

import lmdb
import msgspec
import numpy as np
import pytest
import xxhash

import bandana_kv
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.disk.manifest import FORMAT_VERSION
from bandana_kv.errors import BlockCorruptError, BlockMissingError, FormatError

PER_BLOCK = 31
ROWS = np.random.default_rng(0).random((PER_BLOCK * 8 + 5, 32), np.float32)
BLOCK = 3
IN_BLOCK = np.arange(BLOCK * PER_BLOCK, (BLOCK + 1) * PER_BLOCK)


@pytest.fixture(scope="module", params=["blockfile", "lmdb", "rocksdb"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / "store"
    bandana_kv.load(directory, {"user": ROWS}, adapter=request.param, placement="identity")
    return directory


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


# in the header: checksum, magic, rows, row bytes, block number; in rows: first, last; padding
@pytest.mark.parametrize("at", [0, 9, 15, 16, 24, 32, 32 + 2000, 31 + PER_BLOCK * 128, 4061])
def test_a_flipped_bit_in_a_block_is_an_error_and_costs_that_block_only(
    copy: Path, at: int
) -> None:
    first_row = ROWS[BLOCK * PER_BLOCK].tobytes()
    file = next(
        path
        for path in sorted(copy.rglob("*"))
        if path.suffix in (".mdb", ".sst", ".blocks") and first_row in path.read_bytes()
    )
    flip(file, file.read_bytes().index(first_row) - 32 + at)
    with bandana_kv.open(copy, cache_bytes=1 << 20, admission="all") as store:
        for _ in range(2):  # nothing of the block got into the cache
            for ids in ([IN_BLOCK[0]], IN_BLOCK, np.arange(len(ROWS)), IN_BLOCK[-1:]):
                with pytest.raises(BlockCorruptError, match=r"table 'user'.*block 3"):
                    store.multi_get("user", ids)
        others = np.setdiff1d(np.arange(len(ROWS)), IN_BLOCK)
        assert np.array_equal(store.multi_get("user", others), ROWS[others])
        store.check()


@pytest.fixture
def held(tmp_path: Path) -> MemoryAdapter:
    engine = MemoryAdapter()
    tables = {"user": ROWS, "item": ROWS[::-1].copy()}
    bandana_kv.load(tmp_path, tables, adapter=engine, placement="identity")
    return engine


def spaces(store: bandana_kv.EmbeddingStore) -> tuple[int, int]:
    return store._tables["user"].stored.space, store._tables["item"].stored.space


@pytest.mark.parametrize("source", ["a neighbour", "another table"])
def test_a_sound_block_under_the_wrong_key_is_an_error(
    held: MemoryAdapter, tmp_path: Path, source: str
) -> None:
    with bandana_kv.open(tmp_path, adapter=held) as store:
        user, item = spaces(store)
        wrong = block_keys(user, [2]) if source == "a neighbour" else block_keys(item, [BLOCK])
        held.put_many(block_keys(user, [BLOCK]), held.multi_get(wrong))
        with pytest.raises(BlockCorruptError, match=r"table 'user', block 3: it belongs to"):
            store.get("user", IN_BLOCK[0])
        assert np.array_equal(store.get("item", 0), ROWS[-1])


def test_a_missing_block_is_an_error(held: MemoryAdapter, tmp_path: Path) -> None:
    with bandana_kv.open(tmp_path, adapter=held) as store:
        user, _ = spaces(store)
        held.delete_space(user)
        with pytest.raises(BlockMissingError, match=r"table 'user'.*block 3"):
            store.get("user", IN_BLOCK[0])


def test_a_value_of_another_length_is_an_error(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "theirs"), readahead=False, map_size=1 << 24) as environment:
        engine = LmdbAdapter.on(environment, environment.open_db(None))
        bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=engine, placement="identity")
        with bandana_kv.open(tmp_path / "s", adapter=engine) as store:
            key = int(block_keys(store._tables["user"].stored.space, BLOCK)).to_bytes(8, "big")
            with environment.begin(write=True) as txn:
                txn.put(key, txn.get(key)[:-1])
            with pytest.raises(BlockCorruptError, match=r"table 'user'.*block 3 is .* bytes"):
                store.get("user", IN_BLOCK[0])
        engine.close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"user": ROWS[:40]}, adapter="lmdb", placement="shuffled")
    return tmp_path / "s"


@pytest.mark.parametrize("kind", ["positions", "heat"])
def test_a_flipped_bit_beside_the_blocks_is_noticed_at_opening(small: Path, kind: str) -> None:
    (file,) = small.glob(f"segments/*/{kind}-*")
    for at in (0, 30, 64, file.stat().st_size - 1):
        flip(file, at)
        with pytest.raises(FormatError, match=file.name):
            bandana_kv.open(small)
        flip(file, at)
    file.unlink()
    with pytest.raises(FormatError, match=file.name):
        bandana_kv.open(small)


def test_every_flipped_bit_of_manifest_and_current_is_noticed_or_means_nothing(
    small: Path,
) -> None:
    for file in (small / "CURRENT", small / "manifests" / "000001.json"):
        for at in range(file.stat().st_size):
            flip(file, at)
            noticed = False
            try:
                with bandana_kv.open(small) as store:
                    assert np.array_equal(store.multi_get("user", range(40)), ROWS[:40])
            except FormatError:
                noticed = True
            assert noticed or file.read_bytes()[at : at + 1].isspace(), f"{file.name}, byte {at}"
            flip(file, at)


def test_a_truncated_or_lost_manifest_is_an_error(small: Path) -> None:
    file = small / "manifests" / "000001.json"
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"null", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(FormatError, match=r"000001\.json"):
            bandana_kv.open(small)
    file.unlink()
    with pytest.raises(FormatError, match=r"000001\.json"):
        bandana_kv.open(small)


@pytest.mark.parametrize("unknown_field", [False, True])
def test_a_newer_format_says_upgrade_and_is_left_alone(small: Path, unknown_field: bool) -> None:
    file = small / "manifests" / "000001.json"
    manifest = msgspec.json.decode(file.read_bytes())["manifest"] | {"format": FORMAT_VERSION + 1}
    if unknown_field:
        manifest["new"] = {"in": "a later format"}
    body = msgspec.json.encode(manifest)
    checksum = xxhash.xxh3_64_hexdigest(body)
    file.write_bytes(msgspec.json.encode({"checksum": checksum, "manifest": manifest}))
    before = sorted(small.rglob("*"))
    said = rf"format {FORMAT_VERSION + 1} is newer .* upgrade"
    with pytest.raises(FormatError, match=said):
        bandana_kv.open(small)
    with pytest.raises(FormatError, match=said):
        bandana_kv.load(small, {"user": ROWS})
    assert sorted(small.rglob("*")) == before
