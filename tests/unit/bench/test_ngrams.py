"""The bench of lookup layers: what an n-gram is, and a small run that holds together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from bandana_kv import AccessLog

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("ngrams")


def test_equal_runs_have_equal_hashes_and_no_others(bench: ModuleType) -> None:
    tokens = np.random.default_rng(0).integers(0, 30, 20_000)
    for order in (1, 2, 3):
        words = bench.hashes(tokens, order)
        runs = np.lib.stride_tricks.sliding_window_view(tokens, order)
        pairs = {(tuple(run), int(word)) for run, word in zip(runs.tolist(), words, strict=True)}
        assert len(pairs) == len({run for run, _ in pairs}) == len({word for _, word in pairs})
    assert not set(bench.hashes(tokens, 2).tolist()) & set(bench.hashes(tokens, 3).tolist())
    assert bench.hashes(tokens[:1], 2).size == 0


def test_each_position_ends_an_ngram_of_each_order(bench: ModuleType) -> None:
    text = np.array([5, 6, 7, 6, 7])
    pairs, triples = bench.ngrams_of(text, [2, 3])
    assert pairs.size == triples.size == text.size
    assert pairs[2] == pairs[4] == bench.hashes(np.array([6, 7]), 2)[0]
    assert triples[2] == bench.hashes(text[:3], 3)[0]


def test_steps_take_the_next_tokens_of_several_texts(bench: ModuleType) -> None:
    texts = AccessLog.from_requests([[1, 2, 3], [4, 5], [6, 7, 8]])
    steps = bench.Steps(texts, [2], 2, 2)
    words = [bench.ngrams_of(texts.request(r), [2])[0] for r in range(3)]
    assert np.array_equal(steps.next(), np.concatenate([words[0][:2], words[1]]))
    assert np.array_equal(steps.next(), np.concatenate([words[0][2:], words[2][:2]]))


def test_a_small_run(bench: ModuleType, tmp_path: Path, rng: np.random.Generator) -> None:
    AccessLog.from_requests(rng.zipf(1.4, 60) % 40 for _ in range(120)).write(tmp_path / "log.npz")
    arguments = f"--dir {tmp_path} --log {tmp_path}/log.npz --dim 64 --sequences 4 --steps 20"
    model = "--layers 6 --lookup-layers 0,4 --layer-us 200 --cache 0.05 --json"
    done = CliRunner().invoke(bench.main, [*arguments.split(), *model.split()])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output.splitlines()[-1])
    assert result["keys_per_step"] == 4 * 2
    assert 0 < result["keys_found"] < 1
    assert 0 < result["hit_rate"] < 1
    assert result["slack_us"] == {"0": 0, "4": 800}
    for way in ("asked", "prefetched", "memory"):
        assert result[way]["wrong_rows"] == 0
        assert set(result[way]["stall_us"]) == {"0", "4"}
        assert 0 < result[way]["step_stall"] < 1
        assert result[way]["step_us"] >= 6 * 200


def test_a_wrong_row_is_counted(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bench could not tell otherwise: rows of another source than the store's."""
    AccessLog.from_requests([[1, 2, 3, 4] * 10] * 20).write(tmp_path / "log.npz")
    memory = bench.Memory.get

    def off(self: object, table: int, words: np.ndarray) -> np.ndarray:
        rows: np.ndarray = memory(self, table, words)
        rows[0] += 1
        return rows

    monkeypatch.setattr(bench.Memory, "get", off)
    arguments = f"--dir {tmp_path} --log {tmp_path}/log.npz --dim 8 --sequences 2 --steps 5"
    model = "--layers 2 --lookup-layers 1 --layer-us 50 --json"
    done = CliRunner().invoke(bench.main, [*arguments.split(), *model.split()])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output.splitlines()[-1])
    assert result["asked"]["wrong_rows"] == 3 * 5
    assert result["memory"]["wrong_rows"] == 0
