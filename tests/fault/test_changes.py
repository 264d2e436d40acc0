"""Threads see whole rows of one version while all changes; and the harness sees it if not."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.serve import one_call, overlay, words
from bandana_kv.serve.table import ServedTable
from bandana_kv.testing import changes

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("adapter", "policy"),
    [
        ("blockfile", "tinylfu"),
        ("blockfile", "s3-fifo"),
        ("lmdb", "lru"),
        ("rocksdb", "s3-fifo"),
    ],
)
def test_every_answer_is_whole(tmp_path: Path, adapter: str, policy: str) -> None:
    found = changes.run(tmp_path / "store", adapter, policy=policy, seconds=2.0)
    assert (found["wrong"], found["torn"], found["mixed"], found["failures"]) == (0, 0, 0, [])
    assert found["lookups"]
    assert found["updates"]


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    """Updates write rows of the cache while lookups copy them."""
    patch.setattr(ServedTable, "_alone", lambda _: contextlib.nullcontext())

    def renew(self: Any, positions: np.ndarray, state: Any, data: np.ndarray) -> None:
        # By halves, as a processor may do it.
        for half in (slice(0, 64), slice(64, 128)):
            before = data.copy()
            original(self, positions, state, data)
            changed = data.copy()
            data[:] = before
            data[:, half] = changed[:, half]
            time.sleep(0.0005)
        original(self, positions, state, data)

    original = overlay.Overlay.renew
    patch.setattr(overlay.Overlay, "renew", renew)


def no_retry(patch: pytest.MonkeyPatch) -> None:
    """A lookup that found the table busy is not made again."""
    patch.setattr(one_call, "ask_many", lambda *_: 0)


def no_epoch(patch: pytest.MonkeyPatch) -> None:
    """What was read before a flush enters the cache after it."""
    forget, read = ServedTable._forget_updates, BlockfileAdapter._read

    def slow(self: BlockfileAdapter, *arguments: Any) -> None:
        read(self, *arguments)
        time.sleep(0.003)  # so that many reads are under way when a flush ends

    patch.setattr(BlockfileAdapter, "standing", lambda _: None)
    patch.setattr(BlockfileAdapter, "_read", slow)

    def forgetful(self: ServedTable, *arguments: Any) -> None:
        forget(self, *arguments)
        self.words[words.EPOCH] -= 2

    patch.setattr(ServedTable, "_forget_updates", forgetful)


@pytest.mark.parametrize(
    ("plant", "shown_as"), [(no_barrier, "torn"), (no_retry, "wrong"), (no_epoch, "wrong")]
)
def test_what_is_missing_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    shown_as: str,
) -> None:
    plant(monkeypatch)
    until, seed = time.monotonic() + PATIENCE_S, 0
    while time.monotonic() < until:
        with contextlib.suppress(AssertionError):  # it may be seen in the cache itself, too
            found = changes.run(
                tmp_path / str(seed), "blockfile", policy="lru", seconds=1.0, seed=seed
            )
            if found[shown_as]:
                return
        seed += 1
    raise AssertionError(found)


def test_from_the_command_line() -> None:
    done = CliRunner().invoke(changes.main, ["--seconds", "0.3", "--threads", "2", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["mixed"] == 0
