"""RocksDB: one page a block, the options in force, links, litter, and damage."""

from __future__ import annotations

import itertools
import os
import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rocksdict

from bandana_kv.adapters import block_keys, create, open_existing
from bandana_kv.adapters.rocksdb import RocksdbAdapter
from bandana_kv.errors import AdapterError, BlockCorruptError, InputError
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096
TRAILER = 5
FOOTER = 53
MAGIC = 0x88E241B785F4CFF7


# -- a reader of the table format, just enough to find where its data blocks lie ----------


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def restarts_of(block: bytes) -> tuple[list[int], int]:
    """Return where a block's restart points lie, and where its entries end."""
    count = struct.unpack("<I", block[-4:])[0] & 0x7FFFFFFF
    end = len(block) - 4 * (count + 1)
    return list(struct.unpack(f"<{count}I", block[end:-4])), end


def index_handle(data: bytes) -> tuple[int, int]:
    footer = data[-FOOTER:]
    version, magic = struct.unpack("<IQ", footer[-12:])
    assert magic == MAGIC
    if version < 6:
        _, at = varint(footer, 1)
        _, at = varint(footer, at)
        offset, at = varint(footer, at)
        return offset, varint(footer, at)[0]
    size = struct.unpack("<I", footer[13:17])[0]
    start = len(data) - FOOTER - TRAILER - size
    meta = data[start : start + size]
    at, end = 0, restarts_of(meta)[1]
    name = b""
    while at < end:
        shared, at = varint(meta, at)
        own, at = varint(meta, at)
        length, at = varint(meta, at)
        name = name[:shared] + meta[at : at + own]
        at += own
        if name == b"rocksdb.index":
            offset, at = varint(meta, at)
            return offset, varint(meta, at)[0]
        at += length
    raise AssertionError("the table names no index")


def data_blocks(path: Path) -> list[tuple[int, int]]:
    """Return offset and size, trailer included, of each data block of a table file.

    Index entries carry no value length, and every one is a restart point, so that the
    handles are whole.
    """
    data = path.read_bytes()
    offset, size = index_handle(data)
    index = data[offset : offset + size]
    blocks = []
    for at in restarts_of(index)[0]:
        _, at = varint(index, at)
        own, at = varint(index, at)
        start, at = varint(index, at + own)
        blocks.append((start, varint(index, at)[0] + TRAILER))
    return blocks


def all_blocks(folder: Path) -> list[tuple[int, int]]:
    return list(itertools.chain(*(data_blocks(file) for file in folder.glob("*.sst"))))


# -- helpers ------------------------------------------------------------------------------


def own(path: Path, pages: int = 1) -> RocksdbAdapter:
    adapter = create("rocksdb", path, size_hint_bytes=1 << 20, pages=pages)
    assert isinstance(adapter, RocksdbAdapter)
    return adapter


def load(adapter: RocksdbAdapter, space: int, count: int) -> None:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, count, 500):
            keys = block_keys(space, np.arange(at, min(at + 500, count)))
            yield keys, payloads_for(keys, adapter.payload_bytes)

    adapter.bulk_load(batches(), count)


def put(adapter: RocksdbAdapter, space: int, blocks: range, version: int) -> None:
    keys = block_keys(space, np.array(blocks))
    adapter.put_many(keys, payloads_for(keys, adapter.payload_bytes, version))


def options(**changes: object) -> rocksdict.Options:
    made = rocksdict.Options(raw_mode=bool(changes.get("raw_mode", True)))
    made.set_use_direct_reads(bool(changes.get("direct", True)))
    if not changes.get("compressed"):
        made.set_compression_type(rocksdict.DBCompressionType.none())
    table = rocksdict.BlockBasedOptions()
    table.set_block_size(int(str(changes.get("block_size", PAGE))))
    made.set_block_based_table_factory(table)
    return made


# -- tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 2, 4, 5])
def test_no_data_block_straddles_a_page(tmp_path: Path, pages: int) -> None:
    """Bulk loaded, flushed and compacted files alike hold one value a block, on pages."""
    with own(tmp_path / "store", pages) as adapter:
        load(adapter, 1, 600)
        blocks = all_blocks(tmp_path / "store")
        assert len(blocks) == 600
        assert all(start % PAGE == 0 and size == pages * PAGE for start, size in blocks)
        put(adapter, 1, range(0, 600, 3), version=1)
        adapter._handle.flush()
        put(adapter, 2, range(100), version=1)
        adapter._handle.flush()
        adapter._handle.compact_range(None, None)
    blocks = all_blocks(tmp_path / "store")
    assert len(blocks) >= 700
    assert all(start % PAGE == 0 and size == pages * PAGE for start, size in blocks)


def test_one_byte_more_would_straddle(tmp_path: Path) -> None:
    """The parser sees what it is there to see, and the payload is the largest that fits."""
    with own(tmp_path / "store") as adapter:
        assert adapter.payload_bytes == 4063
        adapter.payload_bytes += 1
        load(adapter, 1, 10)
    blocks = all_blocks(tmp_path / "store")
    assert {size for _, size in blocks} == {PAGE + 1}
    assert sum(start % PAGE != 0 for start, _ in blocks) == 9


def test_the_options_in_force_are_those_asked_for(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 10)
    with open_existing("rocksdb", tmp_path / "store", read_only=False):
        log = (tmp_path / "store" / "LOG").read_text()  # that of the second opening
    for line in (
        "no_block_cache: 1",
        "block_size: 4096",
        "cache_index_and_filter_blocks: 0",
        "Options.use_direct_reads: 1",
        "Options.compression: NoCompression",
    ):
        assert line in " ".join(log.split()), line
    most_open = re.search(r"Options\.max_open_files: (-?\d+)", log)
    assert most_open
    assert 20 <= int(most_open[1]) <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4


def test_a_reader_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "temporary"
    links.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(links))
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 100)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    with open_existing("rocksdb", tmp_path / "store") as reader:
        assert not list(links.iterdir())
        reader.get(int(block_keys(1, 7)))
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    assert before == after
    assert not list(links.iterdir())


def test_a_reader_sees_writes_that_are_only_in_the_log(tmp_path: Path) -> None:
    with own(tmp_path / "store") as writer:
        put(writer, 1, range(10), version=0)
        with open_existing("rocksdb", tmp_path / "store") as reader:
            keys = block_keys(1, np.arange(10))
            expected = payloads_for(keys, reader.payload_bytes)
            np.testing.assert_array_equal(reader.multi_get(keys), expected)


def test_a_reader_keeps_its_view_when_files_are_replaced(tmp_path: Path) -> None:
    with own(tmp_path / "store") as writer:
        load(writer, 1, 300)
        with open_existing("rocksdb", tmp_path / "store") as reader:
            put(writer, 1, range(300), version=1)
            writer._handle.flush()
            writer._handle.compact_range(None, None)
            keys = block_keys(1, np.arange(300))
            np.testing.assert_array_equal(
                reader.multi_get(keys), payloads_for(keys, reader.payload_bytes)
            )
        with open_existing("rocksdb", tmp_path / "store") as reader:
            np.testing.assert_array_equal(
                reader.multi_get(keys), payloads_for(keys, reader.payload_bytes, 1)
            )


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with own(tmp_path / "store"), pytest.raises(AdapterError, match="LOCK"):
        open_existing("rocksdb", tmp_path / "store", read_only=False)


def test_the_litter_of_a_killed_load_goes_with_the_next_writer(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 10)

    def die_loading() -> bool:
        adapter = open_existing("rocksdb", tmp_path / "store", read_only=False)
        keys = block_keys(2, np.arange(5000))

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield keys, payloads_for(keys, adapter.payload_bytes)
            os._exit(0)

        adapter.bulk_load(batches(), 10_000)
        return False

    assert in_child(die_loading)
    litter = list((tmp_path / "store").glob("bulk-load-*/*"))
    assert litter
    with open_existing("rocksdb", tmp_path / "store") as reader:
        assert reader.space_is_empty(2)
    with open_existing("rocksdb", tmp_path / "store", read_only=False) as writer:
        assert not list((tmp_path / "store").glob("bulk-load-*"))
        assert writer.space_is_empty(2)
        assert not writer.space_is_empty(1)


def test_a_failed_load_leaves_nothing(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        keys = block_keys(2, np.arange(5000))
        payloads = payloads_for(keys, adapter.payload_bytes)
        with pytest.raises(InputError, match="told of"):
            adapter.bulk_load([(keys, payloads)], 10_000)
        assert adapter.space_is_empty(2)
        assert not list((tmp_path / "store").glob("bulk-load-*"))


def test_deleting_a_space_frees_the_device(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 2000)
        load(adapter, 2, 10)
        adapter.delete_space(1)
        held = sum(file.stat().st_size for file in (tmp_path / "store").glob("*.sst"))
        assert held < 1000 * PAGE
        adapter.get(int(block_keys(2, 3)))


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 100)
    [table] = (tmp_path / "store").glob("*.sst")
    start = data_blocks(table)[42][0]
    with table.open("r+b") as file:
        file.seek(start + 2000)
        byte = file.read(1)[0]
        file.seek(start + 2000)
        file.write(bytes([byte ^ 1]))
    with open_existing("rocksdb", tmp_path / "store") as reader:
        with pytest.raises(BlockCorruptError, match=r"space 1, block 42 is damaged"):
            reader.multi_get(block_keys(1, np.arange(100)))
        reader.multi_get(block_keys(1, np.arange(42)))


def test_a_file_cut_short_or_missing_is_refused_at_opening(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 100)
    [table] = (tmp_path / "store").glob("*.sst")
    os.truncate(table, table.stat().st_size // 2)
    with pytest.raises(AdapterError, match="cannot be opened"):
        open_existing("rocksdb", tmp_path / "store")
    table.unlink()
    with pytest.raises(AdapterError, match="cannot be opened"):
        open_existing("rocksdb", tmp_path / "store")


def test_a_writer_is_refused_in_a_child(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 10)

        def is_refused() -> bool:
            with pytest.raises(AdapterError, match="fork"):
                adapter.get(int(block_keys(1, 1)))
            adapter.close()
            return True

        assert in_child(is_refused)
        adapter.get(int(block_keys(1, 1)))
        put(adapter, 1, range(3), version=1)


def test_a_handle_that_is_not_raw_is_refused(tmp_path: Path) -> None:
    database = rocksdict.Rdict(str(tmp_path), rocksdict.Options())
    with pytest.raises(InputError, match="raw_mode=True"):
        RocksdbAdapter.on(database)
    database.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"compressed": True}, "compression is"),
        ({"direct": False}, "use_direct_reads is off"),
        ({"block_size": 16384}, "block_size is 16384"),
    ],
)
def test_options_under_which_blocks_cost_more_are_refused_unless_asked_for(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    made = options(**changes)
    database = rocksdict.Rdict(str(tmp_path), made, column_families={"default": made})
    with pytest.raises(InputError, match=named):
        RocksdbAdapter.on(database)
    with RocksdbAdapter.on(database, strict=False) as adapter:
        load(adapter, 1, 10)
        assert not adapter.space_is_empty(1)
    database.close()


def test_the_family_is_known_whatever_its_name(tmp_path: Path) -> None:
    made = options()
    made.create_missing_column_families(True)
    families = {"default": options(compressed=True), "a [b] c": options()}
    database = rocksdict.Rdict(str(tmp_path), made, column_families=families)
    columns = database.get_column_family("a [b] c")
    with RocksdbAdapter.on(columns) as adapter:
        put(adapter, 1, range(3), version=0)
        assert columns.get(int(block_keys(1, 2)).to_bytes(8, "big")) is not None
        assert database.get(int(block_keys(1, 2)).to_bytes(8, "big")) is None
    with pytest.raises(InputError, match="compression"):
        RocksdbAdapter.on(database)
    columns.close()
    database.close()


def test_a_store_works_where_there_are_no_direct_reads() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm here")
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        with own(Path(folder) / "store") as adapter:
            load(adapter, 1, 10)
        with open_existing("rocksdb", Path(folder) / "store") as reader:
            reader.get(int(block_keys(1, 3)))
