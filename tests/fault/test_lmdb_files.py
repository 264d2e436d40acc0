"""LMDB files that are replaced, cut, removed or written to: the right rows, or an error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import block_keys, create, open_existing
from bandana_kv.errors import AdapterError, BlockCorruptError, BlockMissingError
from bandana_kv.testing import in_child, payloads_for

KEYS = block_keys(1, np.arange(300))


def made(path: Path, commits: int = 1) -> Path:
    """Return the path of a store with the blocks of KEYS, written in so many transactions."""
    with create("lmdb", path, size_hint_bytes=1 << 20) as adapter:
        for keys in np.array_split(KEYS, commits):
            adapter.put_many(keys, payloads_for(keys, adapter.payload_bytes))
    return path


def run(code: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


_COMPACT = """
import os, sys, lmdb
with lmdb.open(sys.argv[1], readonly=True) as environment:
    environment.copy(sys.argv[2], compact=True)
os.replace(sys.argv[2] + "/data.mdb", sys.argv[1] + "/data.mdb")
"""

_ANOTHER = """
import sys, numpy as np
from bandana_kv.adapters import block_keys, open_existing
from bandana_kv.errors import AdapterError
from bandana_kv.testing import payloads_for
keys = block_keys(1, np.arange(300))
try:
    adapter = open_existing("lmdb", sys.argv[1], read_only=False)
except AdapterError as error:
    assert "taken the place of a file" in str(error), error
else:
    adapter.put_many(keys[:1], payloads_for(keys[:1], adapter.payload_bytes))
    assert np.array_equal(adapter.multi_get(keys), payloads_for(keys, adapter.payload_bytes))
    adapter.close()
"""


@pytest.mark.parametrize("commits", [3, 4])
def test_a_copy_renamed_over_an_open_file_loses_no_rows(tmp_path: Path, commits: int) -> None:
    """The engine would take one of its two roots by the number of the other file's commits."""
    path = made(tmp_path / "store", commits)
    with open_existing("lmdb", path) as reader:
        expected = payloads_for(KEYS, reader.payload_bytes)
        reader.multi_get(KEYS)
        run(_COMPACT, path, tmp_path)
        run(_ANOTHER, path)
        np.testing.assert_array_equal(reader.multi_get(KEYS), expected)
    with open_existing("lmdb", path, read_only=False) as writer:
        writer.put_many(KEYS[:1], expected[:1])
        np.testing.assert_array_equal(writer.multi_get(KEYS), expected)


@pytest.mark.parametrize("how", ["removed", "cut", "replaced"])
def test_what_a_fork_opens_again_may_have_changed(tmp_path: Path, how: str) -> None:
    path = made(tmp_path / "store")
    with open_existing("lmdb", path) as reader:
        expected = reader.multi_get(KEYS)
        file = path / "data.mdb"
        if how == "removed":
            file.unlink()
        elif how == "cut":
            os.truncate(file, 10 * 4096)
        else:
            run(_COMPACT, path, tmp_path)
        assert in_child(lambda: True)
        if how == "replaced":
            np.testing.assert_array_equal(reader.multi_get(KEYS), expected)
        else:
            with pytest.raises(AdapterError, match=r"No such file|cut short"):
                reader.multi_get(KEYS)


# Writes, deletes nearly all, and puts values of other lengths beneath the keys of blocks, until
# its input ends.
_WRITER = """
import select, sys, numpy as np
from bandana_kv.adapters import block_keys, open_existing
rng = np.random.default_rng(1)
with open_existing("lmdb", sys.argv[1], read_only=False) as writer:
    version = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        version += 1
        keys = np.unique(block_keys(1, rng.integers(0, 40_000, rng.integers(1, 2_000))))
        payloads = np.full((keys.size, writer.payload_bytes), version % 251, np.uint8)
        payloads[:, :8] = keys.astype(">u8").view(np.uint8).reshape(-1, 8)
        writer.put_many(keys, payloads)
        if version % 30 == 0:
            writer._call(lambda: writer._delete_range(int(keys[0]), int(keys[-1])))
        if version % 5 == 0:
            with writer._begin(write=True) as txn:
                txn.put(keys[:1].astype(">u8").tobytes(), bytes(rng.integers(0, 5_000)))
"""


_ANSWERS, _PATIENCE_S = 1000, 60.0


def test_no_block_is_ever_taken_for_another_while_a_process_writes(tmp_path: Path) -> None:
    with create("lmdb", tmp_path / "store", size_hint_bytes=1 << 20):
        pass  # empty: the map grows under the reader, and the tree with it
    rng = np.random.default_rng(0)
    answered = 0
    with open_existing("lmdb", tmp_path / "store") as reader:
        command = [sys.executable, "-c", _WRITER, str(tmp_path / "store")]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
            begun = time.monotonic()
            while answered < _ANSWERS and time.monotonic() - begun < _PATIENCE_S:
                keys = block_keys(1, rng.integers(0, 40_000, rng.integers(1, 5)))
                try:
                    found = reader.multi_get(keys)
                except (BlockMissingError, BlockCorruptError):
                    continue
                answered += 1
                held = np.ascontiguousarray(found[:, :8]).view(">u8").reshape(-1)
                np.testing.assert_array_equal(held, keys)
                assert (found[:, 8:] == found[:, 8:9]).all()
            writer.communicate()
            assert writer.returncode == 0
    assert answered == _ANSWERS
