"""externalize and internalize: the same answers from a store, and from memory again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.torch import Embedding, EmbeddingBag, externalize, internalize

ROWS, SMALL = 500, 20


class Model(nn.Module):
    """A tower of each kind; `again` shares the weight of `user`, `twice` is a module twice."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = nn.Embedding(ROWS, 8, padding_idx=3, dtype=dtype)
        self.again = nn.Embedding(ROWS, 8, sparse=True, dtype=dtype)
        self.again.weight = self.user.weight
        self.towers = nn.ModuleDict(
            {
                "sum": nn.EmbeddingBag(ROWS, 5, mode="sum", padding_idx=2, dtype=dtype),
                "max": nn.EmbeddingBag(ROWS, 6, mode="max", include_last_offset=True, dtype=dtype),
                "small": nn.EmbeddingBag(SMALL, 4, dtype=dtype),
            }
        )
        self.twice = self.towers["sum"]
        self.over = nn.Linear(8, 1, dtype=dtype)

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        bags = ids.reshape(-1), torch.arange(ids.shape[0]) * ids.shape[1]
        last = torch.cat([bags[1], torch.tensor([ids.numel()])])
        return [
            self.user(ids),
            self.again(ids + 1),
            self.towers["sum"](*bags),
            self.towers["max"](bags[0], last),
            self.towers["small"](ids % SMALL),
            self.twice(ids),
            self.over(self.user(ids)),
        ]


IDS = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS - 1, (30, 7)))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_answers_stay_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Model(dtype)
    before = model(IDS)
    with externalize(model, tmp_path / "store", min_bytes=ROWS * 5, cache_bytes=1 << 16) as store:
        assert store.tables == ("user", "towers.sum", "towers.max")
        assert isinstance(model.user, Embedding)
        assert isinstance(model.twice, EmbeddingBag)
        assert model.twice is model.towers["sum"]
        assert type(model.towers["small"]) is nn.EmbeddingBag
        assert set(model.state_dict()) == {"towers.small.weight", "over.weight", "over.bias"}
        assert same(model(IDS), before)
        assert internalize(model) is model
    assert same(model(IDS), before)
    assert model.user.weight is model.again.weight
    assert model.twice is model.towers["sum"]
    assert model.again.sparse
    assert model.user.padding_idx == 3
    fresh = Model(dtype)
    assert set(model.state_dict()) == set(fresh.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)
    )


def test_rows_of_bfloat16_stay_what_they_are(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, 8, dtype=torch.bfloat16))
    before, weight = model(IDS), model[0].weight.detach().clone()
    with externalize(model, tmp_path / "store", min_bytes=0):
        assert torch.equal(model(IDS), before)
        internalize(model)
    assert torch.equal(model[0].weight, weight)


def test_a_log_places_and_options_reach_the_load(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, 8))
    log = AccessLog.from_requests(np.random.default_rng(0).integers(0, ROWS, (200, 10)))
    with externalize(model, tmp_path / "s", log=log, min_bytes=0, adapter="blockfile") as store:
        assert store.tables == ("0",)
        assert not np.array_equal(store.placement("0").position_of_id, np.arange(ROWS))
    two = Model()
    with pytest.raises(
        InputError, match=r"give a log for each table, by name: 'user', 'towers\.sum'"
    ):
        externalize(two, tmp_path / "two", log=log, min_bytes=ROWS * 5)
    with externalize(two, tmp_path / "two", log={"user": log}, min_bytes=ROWS * 5) as store:
        assert not np.array_equal(store.placement("user").position_of_id, np.arange(ROWS))


def test_a_weight_that_something_else_has_stays(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"first": nn.Embedding(ROWS, 8), "head": nn.Linear(8, ROWS), "other": nn.Embedding(ROWS, 8)}
    )
    model["head"].weight = model["first"].weight  # type: ignore[assignment]
    with externalize(model, tmp_path / "store", min_bytes=0) as store:
        assert store.tables == ("other",)
    assert type(model["first"]) is nn.Embedding


def test_hooks_go_along(tmp_path: Path) -> None:
    model, seen = nn.Sequential(nn.Embedding(ROWS, 8)), []
    model[0].register_forward_hook(lambda module, *_: seen.append(type(module)))
    with externalize(model, tmp_path / "store", min_bytes=0):
        model(IDS)
        internalize(model)
    model(IDS)
    assert seen == [Embedding, nn.Embedding]


def with_max_norm() -> nn.Module:
    return nn.Sequential(nn.Embedding(ROWS, 8), nn.EmbeddingBag(ROWS, 8, max_norm=1.0))


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "max_norm": (with_max_norm, {"min_bytes": 0}, "1 has max_norm=1.0, by which a lookup changes"),
    "nothing large": (Model, {}, "no nn.Embedding or nn.EmbeddingBag to itself of 67108864 bytes"),
    "the table itself": (lambda: nn.Embedding(ROWS, 8), {"min_bytes": 0}, "put it into a module"),
    "no numbers": (
        lambda: nn.Sequential(nn.Embedding(ROWS, 8, device="meta")),
        {"min_bytes": 0},
        "0 has no numbers yet",
    ),
    "no such engine": (Model, {"min_bytes": 0, "adapter": "none"}, "no adapter"),
    "a log of another table": (
        Model,
        {"min_bytes": 0, "log": {"item": AccessLog.from_requests([[1]])}},
        "'item', which is not loaded",
    ),
    "no such cache": (Model, {"min_bytes": 0, "cache_bytes": -1}, "cache_bytes"),
}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("what", WRONG)
def test_what_fails_changes_nothing(tmp_path: Path, what: str, there: bool) -> None:
    make, options, said = WRONG[what]
    model = make()
    modules, held = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    if there:
        (tmp_path / "store").mkdir()
    with pytest.raises(BandanaError, match=said):
        externalize(model, tmp_path / "store", **options)
    assert dict(model.named_modules()) == modules
    if what != "no numbers":
        assert all(torch.equal(each, held[name]) for name, each in model.state_dict().items())
    assert [path.name for path in tmp_path.rglob("*")] == (["store"] if there else [])


def test_a_load_that_dies_half_way_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bandana_kv.torch import swap

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    model = Model()
    before = model(IDS)
    monkeypatch.setattr(swap.serving, "open", dies)
    with pytest.raises(KeyboardInterrupt):
        externalize(model, tmp_path / "store", min_bytes=0)
    assert not (tmp_path / "store").exists()
    assert same(model(IDS), before)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="is there already"):
            externalize(Model(), place, min_bytes=0)
    assert (tmp_path / "mine").read_text() == "x"


def test_what_cannot_be_taken_back_is_said(store: bandana_kv.EmbeddingStore) -> None:
    with pytest.raises(InputError, match="no Embedding or EmbeddingBag"):
        internalize(Model())
    with pytest.raises(InputError, match="give the model that the module is in"):
        internalize(Embedding(store, "float32"))
    model = nn.Sequential(Embedding(store, "float32"), Embedding(store, "keyed"))
    with pytest.raises(InputError, match="'keyed' is asked by keys"):
        internalize(model)
    assert isinstance(model[0], Embedding)


@pytest.mark.slow
def test_memory_is_given_back(tmp_path: Path) -> None:
    """Memory of a process of its own before and after, for a table of 256 MiB."""
    code = """
import json, re, torch
from pathlib import Path
from bandana_kv.torch import externalize
def held():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) << 10
options = {"adapter": "blockfile", "placement": "identity"}
small = torch.nn.Sequential(torch.nn.EmbeddingBag(1000, 64, mode="sum"))
with externalize(small, "small", min_bytes=0, **options):  # kernels and libraries
    small(torch.arange(20)[None])
model = torch.nn.Sequential(torch.nn.EmbeddingBag(1 << 20, 64, mode="sum"))
ids = torch.arange(2000).reshape(100, 20) * 499
expected, before = model(ids).detach(), held()
with externalize(model, "store", cache_bytes=1 << 20, **options):
    equal = torch.equal(model(ids), expected)
    print(json.dumps([before, held(), equal]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    before, after, equal = json.loads(done.stdout)
    assert equal
    assert before - after > 200 << 20, (before >> 20, after >> 20)
