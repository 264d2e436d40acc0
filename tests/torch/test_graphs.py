"""The ops in compiled graphs, without a break, and in exported ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bandana_kv
from bandana_kv import EmbeddingStore
from bandana_kv.errors import IdError, InputError
from bandana_kv.torch import Embedding, EmbeddingBag, EmbeddingBagCollection, register

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ROWS = 300


class Model(nn.Module):
    def __init__(self, store: EmbeddingStore) -> None:
        super().__init__()
        self.user = Embedding(store, "float32")
        self.items = EmbeddingBag(store, "wide", mode="sum")
        self.over = nn.Linear(16 + 67, 3)

    def forward(
        self, user: torch.Tensor, items: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        both = torch.cat([self.user(user), self.items(items, offsets)], dim=1)
        return self.over(both).relu()


def inputs(bags: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    user = torch.arange(bags) % ROWS
    return user, torch.arange(4 * bags) % ROWS, torch.arange(bags) * 4


@pytest.fixture
def model(store: EmbeddingStore) -> Model:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return Model(store)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_has_no_graph_break(model: Model, backend: str) -> None:
    explained = torch._dynamo.explain(model)(*inputs(5))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    for bags in (5, 8, 3, 40):
        torch.testing.assert_close(compiled(*inputs(bags)), model(*inputs(bags)))
    compiled(*inputs(4)).sum().backward()
    assert model.over.weight.grad is not None


@pytest.mark.slow
def test_a_model_compiled_to_machine_code(model: Model) -> None:
    compiled: Any = torch.compile(model, fullgraph=True)
    with torch.inference_mode():
        for bags in (5, 8, 3):
            torch.testing.assert_close(compiled(*inputs(bags)), model(*inputs(bags)))


def test_errors_of_a_compiled_model_are_the_store_s(model: Model) -> None:
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    user, items, offsets = inputs(5)
    with pytest.raises(IdError, match="id 300 is out of range"):
        compiled(user, items + 290, offsets)
    compiled(user, items, offsets)


def test_gradients_of_weights_in_a_compiled_model(store: EmbeddingStore) -> None:
    torch._dynamo.reset()
    bags = EmbeddingBag(store, "float32", mode="sum")
    ids, offsets = torch.arange(9), torch.tensor([0, 4])
    compiled: Any = torch.compile(bags, backend="aot_eager", fullgraph=True)
    one, other = torch.ones(9, requires_grad=True), torch.ones(9, requires_grad=True)
    compiled(ids, offsets, one).square().sum().backward()
    bags(ids, offsets, other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_a_collection_in_a_compiled_model(store: EmbeddingStore) -> None:
    torch._dynamo.reset()
    module = EmbeddingBagCollection(store, {"a": "float32", "b": "wide"})

    def answer(ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        found = module({"a": (ids, offsets), "b": (ids + 1, offsets)})
        return torch.cat([found["a"], found["b"]], dim=1) * 2

    compiled: Any = torch.compile(answer, backend="aot_eager", fullgraph=True)
    for bags in (3, 6):
        _, ids, offsets = inputs(bags)
        assert torch.equal(compiled(ids, offsets), answer(ids, offsets))


def test_a_lookup_does_not_wait_for_the_compiler_to_be_imported(path: Path) -> None:
    code = f"""
import sys, torch, bandana_kv, bandana_kv.torch
with bandana_kv.open({str(path)!r}) as store:
    bandana_kv.torch.Embedding(store, "float32")(torch.arange(3))
    bags = bandana_kv.torch.EmbeddingBag(store, "float32", mode="sum")
    weights = torch.ones(3, requires_grad=True)
    bags(torch.arange(3), torch.tensor([0]), weights).sum().backward()
    print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_ops_are_as_torch_wants_them(store: EmbeddingStore) -> None:
    module = EmbeddingBag(store, "float64", mode="sum")
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)
    request = module._request(torch.arange(6), torch.tensor([0, 4]), weights)
    torch.library.opcheck(torch.ops.bandana_kv.bags.default, request)
    request = Embedding(store, "float32")._request(torch.arange(6))
    torch.library.opcheck(torch.ops.bandana_kv.rows.default, request)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model(model: Model, strict: bool) -> None:
    bags, ids = torch.export.Dim("bags", min=2), torch.export.Dim("ids", min=2)
    exported = torch.export.export(
        model, inputs(5), dynamic_shapes=({0: bags}, {0: ids}, {0: bags}), strict=strict
    )
    for count in (5, 9):
        torch.testing.assert_close(exported.module()(*inputs(count)), model(*inputs(count)))


@pytest.mark.slow
def test_an_exported_model_in_another_process(path: Path, model: Model, tmp_path: Path) -> None:
    """It holds the number of its store, under which the other process registers its own."""
    exported = torch.export.export(model, inputs(5))
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.save(model(*inputs(5)).detach(), tmp_path / "expected.pt")
    number = register(model.user.store)
    code = f"""
import torch, bandana_kv, bandana_kv.torch
model = torch.export.load("model.pt2").module()
user, expected = torch.arange(5), torch.load("expected.pt")
inputs = user, torch.arange(20), user * 4
try:
    model(*inputs)
except bandana_kv.BandanaError as error:
    assert "bandana_kv.torch.register(store, {number})" in str(error), error
with bandana_kv.open({str(path)!r}) as store:
    bandana_kv.torch.register(store, {number})
    print(torch.allclose(model(*inputs), expected))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == "True\n", done.stderr


def test_a_number_is_of_one_store(path: Path, store: EmbeddingStore) -> None:
    number = register(store)
    assert register(store) == number
    with bandana_kv.open(path, 0) as other:
        with pytest.raises(InputError, match=f"number {number} is that of another store"):
            register(other, number)
        assert register(other, 10**6) == 10**6
        assert register(other) == 10**6
        assert torch.ops.bandana_kv.rows(
            torch.arange(2), 10**6, "float32", 16, torch.float32
        ).shape == (2, 16)


def test_a_store_that_has_gone_is_said_to_be_missing() -> None:
    with pytest.raises(InputError, match=r"no open store has the number 12345.*register"):
        torch.ops.bandana_kv.rows(torch.arange(2), 12345, "float32", 16, torch.float32)
