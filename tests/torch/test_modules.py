"""Embedding and EmbeddingBag against PyTorch's own, over the same rows, bit for bit."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bandana_kv
from bandana_kv import EmbeddingStore
from bandana_kv.errors import IdError, InputError, TableNotFoundError
from bandana_kv.torch import Embedding, EmbeddingBag

ROWS = 300
SINGLE = ("float32", "narrow", "wide", "bfloat16", "int8", "int4")
EXACT = (*SINGLE, "float64")
Weights = dict[str, torch.Tensor]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(whole), other.view(whole))


@dataclass(frozen=True)
class Case:
    """What is asked, and how."""

    bags: list[list[int]]
    table: str
    mode: str
    kind: torch.dtype
    padding_idx: int | None
    last: bool
    seed: int

    @property
    def ids(self) -> torch.Tensor:
        return torch.tensor([id for bag in self.bags for id in bag], dtype=self.kind)

    @property
    def offsets(self) -> torch.Tensor:
        ends = np.cumsum([0, *(len(bag) for bag in self.bags)])
        return torch.tensor(ends if self.last else ends[:-1], dtype=self.kind)

    @property
    def weights(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.ids.numel(), generator=generator)

    def modules(self, store: EmbeddingStore, weights: Weights) -> tuple[EmbeddingBag, nn.Module]:
        options: dict[str, Any] = {"mode": self.mode, "include_last_offset": self.last}
        options["padding_idx"] = self.padding_idx
        rows, dim = weights[self.table].shape
        theirs = nn.EmbeddingBag(rows, dim, **options, _weight=weights[self.table].clone())
        return EmbeddingBag(store, self.table, **options), theirs


# Few ids, so that many are repeated, in a bag and in the cache.
IDS = st.integers(0, 12) | st.integers(0, ROWS - 1)


def cases(tables: tuple[str, ...], modes: tuple[str, ...]) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        bags=st.lists(st.lists(IDS, max_size=40), min_size=1, max_size=8),
        table=st.sampled_from(tables),
        mode=st.sampled_from(modes),
        kind=st.sampled_from([torch.int32, torch.int64]),
        padding_idx=st.none() | st.integers(0, 5) | st.just(-3),
        last=st.booleans(),
        seed=st.integers(0, 99),
    )


@given(case=cases(EXACT, ("sum", "mean", "max")))
def test_bags_are_those_of_torch_bit_for_bit(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    assert same_bits(ours(case.ids, case.offsets), theirs(case.ids, case.offsets).detach())


@given(case=cases(("float16",), ("sum", "max")))
def test_halves_are_summed_in_single_precision_and_rounded_once(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    assert same_bits(ours(case.ids, case.offsets), theirs(case.ids, case.offsets).detach())


@given(case=cases(("float16",), ("mean",)))
def test_a_mean_of_halves_is_rounded_once_where_torch_rounds_its_sum_too(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, _ = case.modules(store, weights)
    _, wide = case.modules(store, {"float16": weights["float16"].float()})
    assert same_bits(ours(case.ids, case.offsets), wide(case.ids, case.offsets).detach().half())


def test_torch_rounds_the_sum_of_halves_before_it_divides(
    store: EmbeddingStore, weights: Weights
) -> None:
    """Why the mean of halves is compared with that of wide rows; fails when torch changes."""
    ids = torch.arange(299).reshape(13, 23)
    halves = weights["float16"]
    total = nn.EmbeddingBag(ROWS, 16, mode="sum", _weight=halves)(ids)
    mean = nn.EmbeddingBag(ROWS, 16, mode="mean", _weight=halves)(ids)
    assert same_bits(mean.detach(), (total.float() / 23).half().detach())
    ours = EmbeddingBag(store, "float16")(ids)
    assert not torch.equal(ours, mean)
    assert (ours - mean).abs().max() <= 2**-11


@given(case=cases(SINGLE, ("sum",)))
def test_weighted_sums_are_those_of_torch_by_fused_multiply_add(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    expected = theirs(case.ids, case.offsets, case.weights).detach()
    assert same_bits(ours(case.ids, case.offsets, case.weights), expected)


@given(case=cases(("float64",), ("sum",)))
def test_weighted_sums_of_doubles_are_those_of_torch_which_multiplies_and_adds(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    factors = case.weights.double()
    expected = theirs(case.ids, case.offsets, factors).detach()
    assert same_bits(ours(case.ids, case.offsets, factors), expected)


@given(case=cases(("float16",), ("sum",)))
def test_weighted_sums_of_halves_are_those_of_torch(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    factors = case.weights.half()  # products of halves are exact in single precision
    expected = theirs(case.ids, case.offsets, factors).detach()
    assert same_bits(ours(case.ids, case.offsets, factors), expected)


@given(case=cases(SINGLE, ("sum",)))
def test_weighted_sums_are_those_of_torch_nearly(
    store: EmbeddingStore, weights: Weights, case: Case
) -> None:
    ours, theirs = case.modules(store, weights)
    expected = theirs(case.ids, case.offsets, case.weights).detach()
    found = ours(case.ids, case.offsets, case.weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    table=st.sampled_from((*EXACT, "float16", "integers")),
    kind=st.sampled_from([torch.int32, torch.int64]),
)
def test_rows_are_those_of_torch(
    store: EmbeddingStore, weights: Weights, shape: list[int], table: str, kind: torch.dtype
) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, shape)).to(kind)
    rows = Embedding(store, table)(ids)
    assert rows.shape == (*shape, weights[table].shape[1])
    assert torch.equal(rows, nn.functional.embedding(ids, weights[table]))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_two_dimensions(store: EmbeddingStore, weights: Weights, mode: str) -> None:
    ids = torch.arange(60).reshape(12, 5).t()  # not contiguous
    ours = EmbeddingBag(store, "float32", mode=mode, padding_idx=7, include_last_offset=True)
    theirs = nn.EmbeddingBag(ROWS, 16, mode=mode, padding_idx=7, _weight=weights["float32"].clone())
    assert same_bits(ours(ids), theirs(ids).detach())
    factors = torch.ones(5, 12)
    if mode == "sum":
        assert same_bits(ours(ids, None, factors), theirs(ids, None, factors).detach())


def test_rows_of_views_that_are_not_contiguous(store: EmbeddingStore, weights: Weights) -> None:
    ids = torch.arange(200).reshape(10, 20)[::2, 3::4]
    assert torch.equal(Embedding(store, "float32")(ids), weights["float32"][ids])


def test_sums_of_bfloat16_rows_are_rounded_to_even_and_those_of_torch_away_from_zero(
    store: EmbeddingStore, weights: Weights
) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, (400, 3)))
    single = nn.EmbeddingBag(ROWS, 16, mode="sum", _weight=weights["bfloat16"])(ids).detach()
    ours = EmbeddingBag(store, "bfloat16", mode="sum", dtype=torch.bfloat16)(ids)
    assert same_bits(ours, single.bfloat16())
    half = weights["bfloat16"].bfloat16()
    theirs = nn.EmbeddingBag(ROWS, 16, mode="sum", _weight=half)(ids).detach()
    away = ((single.view(torch.int32) + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
    assert same_bits(theirs, away)
    ties = (single.view(torch.int32) & 0xFFFF) == 0x8000
    assert 0 < (ours != theirs).sum() <= ties.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("table", ["float32", "float16", "bfloat16", "int8", "float64"])
def test_rows_come_in_the_dtype_that_is_asked_for(
    store: EmbeddingStore, weights: Weights, table: str, dtype: torch.dtype
) -> None:
    ids = torch.arange(50)
    rows = Embedding(store, table, dtype=dtype)(ids)
    assert same_bits(rows, weights[table][ids].to(dtype))
    bag = EmbeddingBag(store, table, mode="sum", dtype=dtype)(ids[None])
    own = EmbeddingBag(store, table, mode="sum")(ids[None])
    assert same_bits(bag, own.to(dtype))


def test_answers_are_written_where_torch_has_them(store: EmbeddingStore) -> None:
    """No array is made beside: the store is handed the tensor's own memory."""
    given: list[Any] = []
    module = Embedding(store, "float32")
    asked = module.asked(torch.arange(5))

    class Spy:
        def multi_get(self, table: str, ids: Any, *, out: Any) -> None:
            given.append(out)

    from bandana_kv.torch import requests

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "store_of", lambda _: Spy())
        (answer,) = asked.read()
    assert given[0].ctypes.data == answer.data_ptr()
    ids = torch.arange(4)
    assert module.asked(ids).arrays[0].ctypes.data == ids.data_ptr()  # type: ignore[union-attr]


def test_keys_are_asked_for_where_the_table_has_them(
    store: EmbeddingStore, weights: Weights
) -> None:
    ids = torch.tensor([0, 1, 299])
    assert torch.equal(Embedding(store, "keyed")(ids * 7 + 5), weights["float32"][ids])
    bags = EmbeddingBag(store, "keyed", mode="sum", padding_idx=-1)
    padded = torch.tensor([[5, -1, 12]])
    assert same_bits(bags(padded)[0], weights["float32"][0] + weights["float32"][1])


def test_nothing_is_a_parameter(store: EmbeddingStore) -> None:
    model = nn.Sequential(Embedding(store, "float32"), nn.Linear(16, 2))
    assert set(model.state_dict()) == {"1.weight", "1.bias"}
    assert len(list(model.parameters())) == 2
    rows = model[0](torch.arange(3))
    assert not rows.requires_grad
    assert not EmbeddingBag(store, "float32")(torch.arange(4)[None]).requires_grad
    model(torch.arange(3)).sum().backward()
    model.load_state_dict(model.state_dict())


def test_training_is_said_once_to_change_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bandana_kv.open(path, 0) as store, caplog.at_level(logging.INFO, "bandana_kv"):
        one, other = Embedding(store, "float32"), EmbeddingBag(store, "float32")
        one.eval()
        assert not [each for each in caplog.records if "frozen" in each.getMessage()]
        one.train()
        other.train()
        one.train()
    said = [each.getMessage() for each in caplog.records if "frozen" in each.getMessage()]
    assert len(said) == 1
    assert "rows of tables 'float32', 'narrow'" in said[0]
    assert said[0].endswith("are frozen: training does not change them")
    assert one.training


@pytest.mark.parametrize("shape", [(24,), (6, 4)])
def test_weights_have_the_gradient_of_torch(
    store: EmbeddingStore, weights: Weights, shape: tuple[int, ...]
) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 9, shape))
    offsets = torch.tensor([0, 0, 5, 5, 20]) if len(shape) == 1 else None
    given = torch.rand(shape)
    ours, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
    options: dict[str, Any] = {"mode": "sum", "padding_idx": 3}
    reference = nn.EmbeddingBag(ROWS, 16, **options, _weight=weights["float32"].clone())
    out = EmbeddingBag(store, "float32", **options)(ids, offsets, ours)
    assert out.requires_grad
    out.square().sum().backward()
    reference(ids, offsets, theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad is not None
    assert (ours.grad[ids == 3] == 0).all()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        kind = given.to(dtype).requires_grad_()
        EmbeddingBag(store, "float32", **options)(ids, offsets, kind).square().sum().backward()
        assert kind.grad is not None
        assert kind.grad.dtype == dtype
        torch.testing.assert_close(kind.grad.float(), theirs.grad, rtol=0.05, atol=0.3)


def test_gradients_are_right_by_finite_differences(store: EmbeddingStore) -> None:
    bags = EmbeddingBag(store, "float64", mode="sum")
    ids, offsets = torch.tensor([1, 2, 1, 7]), torch.tensor([0, 3])
    factors = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: bags(ids, offsets, each), factors)


def test_inference_mode(store: EmbeddingStore, weights: Weights) -> None:
    with torch.inference_mode():
        ids = torch.arange(12)
        assert torch.equal(Embedding(store, "float32")(ids), weights["float32"][:12])
        bag = EmbeddingBag(store, "float32", mode="sum")(ids, torch.tensor([0]), torch.ones(12))
    torch.testing.assert_close(bag[0], weights["float32"][:12].sum(0))


def test_copies_share_the_store_and_pickles_open_it_anew(
    store: EmbeddingStore, weights: Weights
) -> None:
    model = nn.Sequential(Embedding(store, "float32"), EmbeddingBag(store, "float32", mode="max"))
    shared = copy.deepcopy(model)
    assert shared[0].store is store
    other = pickle.loads(pickle.dumps(model))
    assert other[0].store is not store
    assert other[0].store is other[1].store
    ids = torch.arange(6)
    assert torch.equal(other[0](ids), weights["float32"][:6])
    opened = other[0].store
    del other
    with pytest.raises(InputError, match="closed"):
        opened.get("float32", 0)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no such table": (lambda s: Embedding(s, "itme"), TableNotFoundError, "no table 'itme'"),
    "no store": (lambda _: Embedding("path", "item"), InputError, "'path' is no open store"),
    "no such mode": (
        lambda s: EmbeddingBag(s, "float32", mode="min"),
        InputError,
        "mode is sum, mean or max, not 'min'",
    ),
    "integers in bags": (
        lambda s: EmbeddingBag(s, "integers"),
        InputError,
        "'integers': rows of torch.int16 are not pooled",
    ),
    "integers as floats": (
        lambda s: Embedding(s, "float32", dtype=torch.int8),
        InputError,
        "rows are float32, and not answered as int8",
    ),
    "an id beyond": (
        lambda s: Embedding(s, "float32")(torch.tensor([1, 300])),
        IdError,
        "'float32': id 300 is out of range",
    ),
    "a negative id": (
        lambda s: EmbeddingBag(s, "float32")(torch.tensor([[-1]])),
        IdError,
        "id -1 is out of range",
    ),
    "floats as ids": (
        lambda s: Embedding(s, "float32")(torch.rand(3)),
        IdError,
        "ids must be integers, not float32",
    ),
    "no offsets": (
        lambda s: EmbeddingBag(s, "float32")(torch.arange(3)),
        InputError,
        "give ids \\(n,\\) with offsets",
    ),
    "offsets of two dimensions": (
        lambda s: EmbeddingBag(s, "float32")(torch.zeros(2, 2).long(), torch.tensor([0])),
        InputError,
        "not 2 dimensions with offsets",
    ),
    "offsets that fall": (
        lambda s: EmbeddingBag(s, "float32")(torch.arange(3), torch.tensor([0, 2, 1])),
        InputError,
        "not fall",
    ),
    "weights for a mean": (
        lambda s: EmbeddingBag(s, "float32")(torch.zeros(1, 2).long(), None, torch.ones(1, 2)),
        InputError,
        "mode='sum' alone",
    ),
    "weights of another shape": (
        lambda s: EmbeddingBag(s, "float32", mode="sum")(
            torch.zeros(1, 2).long(), None, torch.ones(2)
        ),
        InputError,
        "of the shape of the ids, \\(1, 2\\), not \\(2,\\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(store: EmbeddingStore, what: str) -> None:
    call, error, said = WRONG[what]
    with pytest.raises(error, match=said):
        call(store)


def test_a_closed_store_is_said_to_be_closed(path: Path) -> None:
    with bandana_kv.open(path, 0) as store:
        module = Embedding(store, "float32")
    with pytest.raises(InputError, match="closed"):
        module(torch.arange(2))


def test_a_nan_is_the_max_of_its_bag_only_if_it_comes_first(tmp_path: Path) -> None:
    rows = np.array([[1], [np.nan], [3]], np.float32)
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter="blockfile", placement="identity")
    with bandana_kv.open(tmp_path / "s") as store:
        ours = EmbeddingBag(store, "t", mode="max")
        theirs = nn.EmbeddingBag(3, 1, mode="max", _weight=torch.from_numpy(rows))
        first, later = torch.tensor([[1, 0]]), torch.tensor([[0, 1, 2]])
        assert ours(first).isnan().item()
        assert theirs(first).isnan().item()
        assert ours(later).item() == theirs(later).item() == 3


def test_shapes_are_known_without_rows(store: EmbeddingStore) -> None:
    """On torch's device without memory, as where models are laid out before they are filled."""
    ids = torch.zeros((3, 4), dtype=torch.int32, device="meta")
    rows = Embedding(store, "float16")(ids)
    assert (rows.shape, rows.dtype, rows.device.type) == ((3, 4, 16), torch.float16, "meta")
    bags = EmbeddingBag(store, "wide")(ids)
    assert (bags.shape, bags.device.type) == ((3, 67), "meta")


def test_bfloat16_has_a_name_in_both_worlds(store: EmbeddingStore) -> None:
    ids = np.arange(9)
    ours = Embedding(store, "bfloat16", dtype=torch.bfloat16)(torch.from_numpy(ids))
    rows = store.multi_get("bfloat16", ids, dtype=ml_dtypes.bfloat16)
    assert np.array_equal(ours.view(torch.int16).numpy(), rows.view(np.int16))
