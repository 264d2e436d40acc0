"""The bench that holds predictions against what came: a small run of it, and what it says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.assess.performance import calibration
from bandana_kv.device import DeviceProfile

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_ROUNDS", 1)
    monkeypatch.setattr(calibration, "_TABLE_BYTES", 1 << 20)
    return importlib.import_module("assess_accuracy")


@pytest.mark.slow
def test_what_it_says_holds_together(
    bench: ModuleType, profile_of: Callable[..., DeviceProfile], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    lists = rng.permutation(3000).reshape(100, 30)
    requests = [
        rng.choice(lists[min(99, rng.geometric(0.05))], rng.integers(1, 20), replace=False)
        for _ in range(1500)
    ]
    bandana_kv.AccessLog.from_requests(requests).write(tmp_path / "log.npz")
    profile_of({1: 1e4, 4: 2e4, 16: 4e4, 64: 8e4}).write(tmp_path / "device.json")
    work = tmp_path / "work"
    work.mkdir()
    options = {"dir": work, "log": tmp_path / "log.npz", "profile": tmp_path / "device.json"}
    said = CliRunner().invoke(
        bench.main,
        [f"--{name}={value}" for name, value in options.items()]
        + ["--rounds=1", "--threads=2", "--cache=0.1", "--json"],
        catch_exceptions=False,
    )
    assert said.exit_code == 0
    result = json.loads(said.stdout.splitlines()[-1])
    assert result["wrong_rows"] == 0
    one = result["one_caller"]
    assert one["measured_reads"] == one["replayed_reads"] > 0
    assert result["measured_lookups"] == result["lookups"]
    error = result["predicted_reads"] / result["measured_reads"] - 1
    assert result["relative_error"] == pytest.approx(error, abs=1e-3)
    assert abs(one["relative_error"]) < 0.05
    ahead = result["from_training"]
    assert ahead["low"] <= ahead["reads_per_lookup"] <= ahead["high"]
    assert ahead["measured"] == pytest.approx(one["measured_reads"] / result["lookups"])
    assert result["predicted_rows_per_second"] > 0
    assert not list(work.iterdir())
