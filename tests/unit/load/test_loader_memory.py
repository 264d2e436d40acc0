"""Memory that a load takes does not grow with the bytes of the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import resource, sys
import numpy as np
import bandana_kv
path, adapter, table = sys.argv[1:]

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

warm = np.zeros((2000, 32), np.float32)
bandana_kv.load(path + "-warm", {"user": warm}, adapter=adapter, placement="shuffled")
before = peak_mib()
bandana_kv.load(path, {"user": table}, adapter=adapter, placement="shuffled")
print(peak_mib() - before)
"""
ROWS, DIM = 1_000_000, 64  # 244 MiB
BYTES_A_ROW = 25
CHUNKS_MIB = 128


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb"])
def test_a_table_larger_than_the_bound_is_loaded_within_it(tmp_path: Path, adapter: str) -> None:
    table = tmp_path / "rows.npy"
    np.lib.format.open_memmap(table, "w+", np.float32, (ROWS, DIM)).flush()  # sparse: zeros
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s"), adapter, str(table)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= CHUNKS_MIB + (BYTES_A_ROW * ROWS >> 20)
