"""LMDB: one page a value, maps that grow, forks, and handles that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest

from bandana_kv.adapters import block_keys, create, open_existing
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.errors import AdapterError, DiskFullError, InputError
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096


def load(adapter: LmdbAdapter, space: int, count: int) -> None:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, count, 500):
            keys = block_keys(space, np.arange(at, min(at + 500, count)))
            yield keys, payloads_for(keys, adapter.payload_bytes)

    adapter.bulk_load(batches(), count)


def check(adapter: LmdbAdapter, space: int, count: int) -> None:
    keys = block_keys(space, np.arange(count))
    expected = payloads_for(keys, adapter.payload_bytes)
    np.testing.assert_array_equal(adapter.multi_get(keys), expected)


def own(path: Path) -> LmdbAdapter:
    adapter = create("lmdb", path, size_hint_bytes=1 << 20)
    assert isinstance(adapter, LmdbAdapter)
    return adapter


@pytest.mark.parametrize("engine", [0, 1])
@pytest.mark.parametrize("pages", [1, 2, 4])
def test_a_value_takes_its_pages_and_one_byte_more_takes_another(
    tmp_path: Path, engine: int, pages: int
) -> None:
    if not hasattr(lmdb.Environment, "lib_version"):
        pytest.skip("this py-lmdb carries one engine")
    with lmdb.open(
        str(tmp_path), map_size=1 << 26, readahead=False, lib_version=engine
    ) as environment:
        if environment.stat()["psize"] != PAGE:
            pytest.skip("this machine has larger pages")
        database = environment.open_db(None)
        with LmdbAdapter.on(environment, database, pages=pages) as adapter:
            assert adapter.payload_bytes == pages * PAGE - (16, 24)[engine]
            load(adapter, 1, 300)
            adapter.put_many(block_keys(1, [7]), np.zeros((1, adapter.payload_bytes), np.uint8))
        with environment.begin(write=True) as txn:
            assert txn.stat(database)["overflow_pages"] == 300 * pages
            txn.put(b"longer", b"x" * (adapter.payload_bytes + 1))
            assert txn.stat(database)["overflow_pages"] == 300 * pages + pages + 1


def test_a_store_of_its_own_reads_nothing_ahead(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        flags = adapter._environment.handle.flags()
        assert not flags["readahead"]
        assert flags["sync"]
        assert flags["lock"]
        assert not flags["writemap"]


def test_a_reader_does_not_write(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 10)
    data = tmp_path / "store" / "data.mdb"
    before = data.read_bytes()
    with open_existing("lmdb", tmp_path / "store") as reader:
        assert reader._environment.handle.flags()["readonly"]  # type: ignore[attr-defined]
        reader.get(int(block_keys(1, 1)))
    assert data.read_bytes() == before


def test_the_map_grows_under_readers_of_this_process(tmp_path: Path) -> None:
    with own(tmp_path / "store") as writer:
        load(writer, 1, 100)
        size = writer._environment.handle.info()["map_size"]
        with open_existing("lmdb", tmp_path / "store") as reader:
            assert isinstance(reader, LmdbAdapter)
            load(writer, 2, 2 * size // PAGE)
            check(reader, 1, 100)
            check(reader, 2, 200)
        assert writer._environment.handle.info()["map_size"] > 2 * size


def test_a_reader_follows_a_map_that_another_process_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with own(path) as writer:
        load(writer, 1, 100)
    with open_existing("lmdb", path) as reader:
        assert isinstance(reader, LmdbAdapter)
        check(reader, 1, 100)
        code = (
            "import sys, numpy as np\n"
            "from bandana_kv.adapters import block_keys, open_existing\n"
            "from bandana_kv.testing import in_child, payloads_for\n"
            "with open_existing('lmdb', sys.argv[1], read_only=False) as writer:\n"
            "    keys = block_keys(2, np.arange(10_000))\n"
            "    writer.bulk_load([(keys, payloads_for(keys, writer.payload_bytes))], 10_000)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        check(reader, 1, 100)
        check(reader, 2, 10_000)


def test_paths_with_aliases_share_one_environment(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "store")
    with own(tmp_path / "store") as first:
        load(first, 1, 10)
        with open_existing("lmdb", tmp_path / "alias") as second:
            assert isinstance(second, LmdbAdapter)
            assert second._environment is first._environment
            first.close()
            check(second, 1, 10)
    # The last one closed it, so that py-lmdb allows another opening.
    lmdb.open(str(tmp_path / "store")).close()


def test_a_fork_leaves_the_parents_readers_registered(tmp_path: Path) -> None:
    """Closing an environment in a child would clear the parent's slots."""
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 100)

        def read_and_close() -> bool:
            check(adapter, 1, 100)
            adapter.close()
            return True

        assert in_child(read_and_close)
        check(adapter, 1, 100)
        with adapter._begin():
            assert str(os.getpid()) in adapter._environment.handle.readers()


def test_a_writer_survives_a_fork_in_both_processes(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 10)

        def write_and_close() -> bool:
            load(adapter, 2, 10)
            adapter.close()
            return True

        assert in_child(write_and_close)
        load(adapter, 3, 10)
        for space in (1, 2, 3):
            check(adapter, space, 10)


def test_a_users_environment_is_refused_in_a_child(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 24, readahead=False) as environment:
        adapter = LmdbAdapter.on(environment, environment.open_db(None))
        load(adapter, 1, 10)

        def is_refused() -> bool:
            with pytest.raises(AdapterError, match="fork"):
                adapter.get(int(block_keys(1, 1)))
            return True

        assert in_child(is_refused)
        check(adapter, 1, 10)


def test_a_full_map_of_the_users_is_a_full_disk_and_theirs_to_enlarge(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 20, readahead=False) as environment:
        adapter = LmdbAdapter.on(environment, environment.open_db(None))
        with pytest.raises(DiskFullError, match="set_mapsize"):
            load(adapter, 1, 1000)
        assert environment.info()["map_size"] == 1 << 20
        adapter.delete_space(1)
        load(adapter, 1, 100)
        check(adapter, 1, 100)


@pytest.mark.parametrize("option", ["dupsort", "reverse_key", "integerkey"])
def test_sub_databases_in_another_order_are_refused(tmp_path: Path, option: str) -> None:
    with lmdb.open(str(tmp_path), max_dbs=1, readahead=False) as environment:
        database = environment.open_db(b"other", **{option: True})
        with pytest.raises(InputError, match=option):
            LmdbAdapter.on(environment, database)


def test_an_environment_that_reads_ahead_is_refused_unless_asked_for(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 24) as environment:
        database = environment.open_db(None)
        with pytest.raises(InputError, match="readahead=False"):
            LmdbAdapter.on(environment, database)
        with LmdbAdapter.on(environment, database, strict=False) as adapter:
            load(adapter, 1, 10)
            check(adapter, 1, 10)


def test_a_file_cut_short_is_refused_at_opening(tmp_path: Path) -> None:
    """Reading past the end of a mapped file would kill the process."""
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 1000)
    data = tmp_path / "store" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(AdapterError, match="cut short"):
        open_existing("lmdb", tmp_path / "store")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(AdapterError, match="cannot be opened"):
        open_existing("lmdb", tmp_path)


def test_deleting_all_but_a_little_leaves_a_store_that_opens(tmp_path: Path) -> None:
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 3000)
        load(adapter, 2, 1)
        adapter.delete_space(1)
    with own_again(tmp_path / "store") as adapter:
        check(adapter, 2, 1)
        load(adapter, 1, 3000)
        check(adapter, 1, 3000)


def own_again(path: Path) -> LmdbAdapter:
    adapter = open_existing("lmdb", path, read_only=False)
    assert isinstance(adapter, LmdbAdapter)
    return adapter
