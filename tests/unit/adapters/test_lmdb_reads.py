"""LMDB: many reads from one call give the engine's answers, or leave them to the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import block_keys, create, lmdb_reads, open_existing
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.errors import AdapterError
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096


@pytest.fixture
def adapter(tmp_path: Path) -> LmdbAdapter:
    made = create("lmdb", tmp_path / "store", size_hint_bytes=1 << 20)
    assert isinstance(made, LmdbAdapter)
    keys = block_keys(1, np.arange(1000))
    made.bulk_load([(keys, payloads_for(keys, made.payload_bytes))], 1000)
    return made


def fast(adapter: LmdbAdapter, keys: np.ndarray) -> np.ndarray | None:
    """Return what is read without the engine's help, or None."""
    reads = adapter._environment.reads
    assert reads is not None
    out = np.zeros((keys.size, adapter.payload_bytes), np.uint8)
    with adapter._begin() as txn:
        return out if reads.read(txn.id(), keys, out) else None


def test_any_order_and_duplicates(adapter: LmdbAdapter) -> None:
    with adapter:
        assert adapter.capabilities.queue_depth == "call"
        keys = block_keys(1, np.random.default_rng(0).integers(0, 1000, 3000))
        np.testing.assert_array_equal(
            fast(adapter, keys), payloads_for(keys, adapter.payload_bytes)
        )
        assert fast(adapter, block_keys(1, [3, 1000])) is None
        assert fast(adapter, block_keys(0, [3])) is None


def test_a_snapshot_that_is_no_longer_the_newest_is_left_to_the_engine(
    adapter: LmdbAdapter,
) -> None:
    keys = block_keys(1, [7])
    with adapter, adapter._begin() as txn:
        adapter.put_many(keys, np.zeros((1, adapter.payload_bytes), np.uint8))
        out = np.zeros((1, adapter.payload_bytes), np.uint8)
        assert adapter._environment.reads is not None
        assert not adapter._environment.reads.read(txn.id(), keys, out)


def test_every_call_sees_one_commit_of_another_process(adapter: LmdbAdapter) -> None:
    path = adapter._environment.where
    adapter.close()
    code = (
        "import sys, numpy as np\n"
        "from bandana_kv.adapters import block_keys, open_existing\n"
        "with open_existing('lmdb', sys.argv[1], read_only=False) as writer:\n"
        "    keys = block_keys(1, np.arange(0, 1000, 10))\n"
        "    for version in range(300):\n"
        "        value = np.full((100, writer.payload_bytes), version % 251, np.uint8)\n"
        "        writer.put_many(keys, value)\n"
    )
    keys = block_keys(1, np.arange(0, 1000, 10))
    with open_existing("lmdb", Path(path)) as reader:
        assert isinstance(reader, LmdbAdapter)
        first, answered, seen = reader.multi_get(keys), 0, set()
        with subprocess.Popen([sys.executable, "-c", code, path]) as writer:
            while writer.poll() is None:
                found = fast(reader, keys)
                if found is None:
                    continue
                answered += 1
                if not np.array_equal(found, first):
                    assert (found == found[0, 0]).all()
                    seen.add(int(found[0, 0]))
            assert writer.returncode == 0
        assert answered
        assert len(seen) > 10


def test_a_child_reads_on_and_descriptors_are_given_back(adapter: LmdbAdapter) -> None:
    keys = block_keys(1, np.arange(100))
    expected = payloads_for(keys, adapter.payload_bytes)

    def reads() -> bool:
        adapter.get(int(keys[0]))
        return np.array_equal(fast(adapter, keys), expected)

    assert in_child(reads)
    assert reads()
    adapter.close()
    open_files = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    assert not [each for each in open_files if each.endswith("data.mdb")]


def test_a_file_that_grows_while_it_is_read_costs_few_descriptors(adapter: LmdbAdapter) -> None:
    with adapter:
        for step in range(40):
            keys = block_keys(2, np.arange(50 * step, 50 * step + 50))
            adapter.put_many(keys, payloads_for(keys, adapter.payload_bytes))
            np.testing.assert_array_equal(
                fast(adapter, keys), payloads_for(keys, adapter.payload_bytes)
            )
        open_files = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
        assert len([each for each in open_files if each.endswith("data.mdb")]) <= 12


def test_a_file_that_ends_early_is_an_error_and_kills_nobody(adapter: LmdbAdapter) -> None:
    data = Path(adapter._environment.where, "data.mdb")

    def is_refused() -> bool:
        adapter.get(int(block_keys(1, 0)))
        os.truncate(data, data.stat().st_size - 20 * PAGE)
        with pytest.raises(AdapterError, match="ends before"):
            adapter.get(int(block_keys(1, 999)))
        return True

    assert in_child(is_refused)


def test_another_format_is_left_to_the_engine(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(2 * PAGE))
    assert lmdb_reads.TreeReads.of(tmp_path / "data", 0, PAGE) is None
    assert lmdb_reads.TreeReads.of(tmp_path / "data", 1, PAGE) is None


def test_compiled_reads_are_found_again_by_another_process(adapter: LmdbAdapter) -> None:
    code = (
        "import sys, numpy as np\n"
        "from bandana_kv.adapters import block_keys, lmdb_reads, open_existing\n"
        "with open_existing('lmdb', sys.argv[1]) as adapter:\n"
        "    adapter.multi_get(block_keys(1, np.arange(100)))\n"
        "kernel = lmdb_reads._read\n"
        "if kernel.stats.cache_path is not None:\n"
        "    assert kernel.signatures and not kernel.stats.cache_misses\n"
    )
    where = adapter._environment.where
    adapter.multi_get(block_keys(1, np.arange(100)))
    adapter.close()
    subprocess.run([sys.executable, "-c", code, where], check=True)
