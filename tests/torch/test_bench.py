"""The bench of a model runs, at a size that says nothing of speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "torch_dlrm.py"


@pytest.mark.slow
def test_a_small_model_scores_the_same_from_every_system(tmp_path: Path) -> None:
    sizes = {"tables": 3, "rows": 3000, "dim": 16, "batch": 8, "batches": 10, "most-ids": 12}
    sizes |= {"logs": 1, "rounds": 1, "device-reads": 1e5}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, BENCH, "--dir", tmp_path, "--no-limits", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    found = {each["system"]: each for each in result["systems"]}
    assert list(found) == ["ram", "memmap", "ours", "ours-ahead"]
    assert all(each["samples_per_second"] > 0 for each in found.values())
    assert all(found[name]["equal"] for name in ("memmap", "ours", "ours-ahead"))
    assert found["ours"]["private_bytes"] <= result["dram_bytes"]
    assert 0 <= found["ours-ahead"]["stall_share"] <= 1
    reads = found["ours"]["block_reads_per_sample"]
    assert result["device_allows"] == pytest.approx(1e5 / reads, rel=0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tables_moved_into_a_store_leave_memory(tmp_path: Path) -> None:
    bench, sizes = BENCH.with_name("externalize.py"), ["--tables", "2", "--rows", "100000"]
    done = subprocess.run(
        [sys.executable, bench, "--dir", tmp_path, "--json", *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["equal"]
    assert result["before_bytes"] >= result["table_bytes"] == 2 * 100_000 * 64 * 4
    assert result["after_bytes"] < result["before_bytes"] / 2
    assert list(tmp_path.iterdir()) == []
