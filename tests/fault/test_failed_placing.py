"""Re-placements that fail or die at every step: what was served before goes on being served."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.disk import block_map, manifest
from bandana_kv.errors import BandanaError, DiskFullError
from bandana_kv.placement import Placement
from bandana_kv.serve import replacement
from bandana_kv.testing.faults import Faults, injecting

ROWS = np.random.default_rng(0).random((300, 64), np.float32)
EVERY = np.arange(300)
ENGINES = ["blockfile", "rocksdb"]


def shuffled(store: bandana_kv.EmbeddingStore, seed: int) -> Placement:
    served = store.placement("t")
    ids = np.random.default_rng(seed).choice(300, 80, replace=False)
    positions = served.position_of_id.copy()
    positions[ids] = positions[np.roll(ids, 1)]
    return Placement(positions, served.rows_per_block, "shuffled")


def assert_served(store: bandana_kv.EmbeddingStore, expected: np.ndarray) -> None:
    assert np.array_equal(store.multi_get("t", EVERY), expected)
    store.check()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device (injected)")


@pytest.mark.parametrize("kind", ["error", "full"])
@pytest.mark.parametrize("adapter", ["blockfile", "lmdb"])
def test_every_operation_of_the_engine_fails_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, kind: str
) -> None:
    monkeypatch.setattr(replacement, "_WRITTEN_AT_ONCE", 4)
    monkeypatch.setattr(replacement, "_READ_AT_ONCE", 6)
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": ROWS}, adapter=adapter, placement="shuffled")
    expected = ROWS.copy()
    refused = DiskFullError if kind == "full" else BandanaError
    failed = number = 0
    while True:
        faults = Faults(0)
        with injecting(faults), bandana_kv.open(path, 20_000) as store:
            assert_served(store, expected)
            expected[number % 300] += 1
            store.update("t", [number % 300], expected[[number % 300]])
            before = store.version, store.placement("t").position_of_id
            first = faults.operations
            faults.schedule(number, kind)
            try:
                store.place_anew("t", shuffled(store, number))
            except refused:
                failed += 1
                assert (store.version, manifest.current_number(path)) == (before[0], before[0])
                assert np.array_equal(store.placement("t").position_of_id, before[1])
                assert sorted(int(each.name[:6]) for each in (path / "manifests").iterdir()) == [
                    before[0]
                ]
                assert not manifest.segment_path(path, before[0] + 1).exists()
            over = faults.operations <= first + number
            assert_served(store, expected)
            store.flush()
        with bandana_kv.open(path, 0) as store:
            assert_served(store, expected)
        if over:
            break
        number += 1
    assert failed >= 4  # batches are written
    report = bandana_kv.verify(path)
    assert report.sound, report.findings
    # What was written in vain is found free again.
    found = block_map.read_block_map(path, manifest.read_current(path).tables["t"])
    assert found is not None
    assert block_map.numbers_of(found).max() < 2 * found.size


@pytest.mark.parametrize("step", ["write_arrays", "write_array", "open_version", "carry_over"])
def test_a_step_that_fails_leaves_what_was_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": ROWS}, adapter="blockfile", placement="shuffled")
    with bandana_kv.open(path, 20_000) as store:
        store.multi_get("t", EVERY)
        with monkeypatch.context() as patch:
            patch.setattr(
                replacement, step, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
            )
            with pytest.raises(DiskFullError):
                store.place_anew("t", shuffled(store, 0))
        assert (store.version, manifest.current_number(path)) == (1, 1)
        assert [each.name for each in (path / "segments").iterdir()] == ["000001"]
        assert_served(store, ROWS)
        assert store.place_anew("t", shuffled(store, 0)).version == 2
        assert_served(store, ROWS)


@pytest.mark.parametrize(
    "adapter", ["lmdb", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES)]
)
def test_a_killed_re_placement_changes_nothing_until_it_is_complete(
    tmp_path: Path, adapter: str
) -> None:
    script = Path(__file__).with_name("killed_placing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "s"), adapter],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    found = json.loads(done.stdout or "{}")
    assert found.get("wrong") == 0, done.stderr
    assert found["kills"] >= 20
    assert 0 < found["switched"] < found["kills"]
