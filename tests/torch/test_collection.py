"""EmbeddingBagCollection against bags of each feature by itself, and TorchRec's own objects."""

from __future__ import annotations

import importlib.util
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bandana_kv import EmbeddingStore
from bandana_kv.errors import IdError, InputError
from bandana_kv.torch import EmbeddingBagCollection, KeyedTensor

ROWS = 300
FEATURES = {"seen": "float32", "bought": "int8", "liked": "float32", "user": "wide"}
Weights = dict[str, torch.Tensor]


class Jagged:
    """What TorchRec's KeyedJaggedTensor is asked here: ids of keys, one after the other."""

    def __init__(
        self, lists: dict[str, list[list[int]]], weights: torch.Tensor | None = None
    ) -> None:
        self._keys = list(lists)
        bags = [bag for of_key in lists.values() for bag in of_key]
        self._values = torch.tensor([id for bag in bags for id in bag], dtype=torch.int64)
        self._lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int32)
        self._weights = weights

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> torch.Tensor:
        return self._values

    def lengths(self) -> torch.Tensor:
        return self._lengths

    def weights_or_none(self) -> torch.Tensor | None:
        return self._weights


class WithOffsets(Jagged):
    def lengths(self) -> torch.Tensor:
        raise AssertionError("not asked for where there are offsets")

    def offsets(self) -> torch.Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), self._lengths.cumsum(0)])


def bags_of(given: dict[str, list[list[int]]], mode: str, weights: Weights) -> Weights:
    """Return each feature's bags by PyTorch's own, one feature after the other."""
    expected = {}
    for feature, lists in given.items():
        if feature in FEATURES:
            rows = weights[FEATURES[feature]]
            ids = torch.tensor([id for bag in lists for id in bag], dtype=torch.int64)
            ends = np.cumsum([0, *(len(bag) for bag in lists)])[:-1]
            bag: Any = nn.EmbeddingBag(*rows.shape, mode=mode, _weight=rows)
            expected[feature] = bag(ids, torch.from_numpy(ends)).detach()
    return expected


LISTS = st.lists(st.integers(0, 9) | st.integers(0, ROWS - 1), max_size=12)


@given(
    order=st.permutations([*FEATURES, "unused"]),
    mode=st.sampled_from(["sum", "mean", "max"]),
    lists=st.integers(1, 4).flatmap(
        lambda bags: st.lists(st.lists(LISTS, min_size=bags, max_size=bags), min_size=5, max_size=5)
    ),
    kind=st.sampled_from([Jagged, WithOffsets]),
)
def test_jagged_tensors(
    store: EmbeddingStore,
    weights: Weights,
    order: list[str],
    mode: str,
    lists: list[list[list[int]]],
    kind: type[Jagged],
) -> None:
    given = dict(zip(order, lists, strict=True))
    answer = EmbeddingBagCollection(store, FEATURES, mode=mode)(kind(given))
    assert isinstance(answer, KeyedTensor)
    assert answer.keys() == list(FEATURES)
    assert answer.length_per_key() == [16, 16, 16, 67]
    assert answer.offset_per_key() == [0, 16, 32, 48, 115]
    assert answer.values().shape == (len(lists[0]), 115)
    for feature, expected in bags_of(given, mode, weights).items():
        assert torch.equal(answer[feature], expected)
        assert torch.equal(answer.to_dict()[feature], expected)


@pytest.mark.parametrize("last", [False, True])
def test_dictionaries_have_bags_of_their_own_number(
    store: EmbeddingStore, weights: Weights, last: bool
) -> None:
    given = {"seen": [[1, 2], [], [3]], "bought": [[4]], "liked": [[], [5, 5]], "user": [[9], [8]]}
    inputs = {}
    for feature, lists in given.items():
        ends = np.cumsum([0, *(len(bag) for bag in lists)])
        offsets = torch.from_numpy(ends if last else ends[:-1])
        inputs[feature] = torch.tensor([id for bag in lists for id in bag]), offsets
    found = EmbeddingBagCollection(store, FEATURES, include_last_offset=last)(inputs)
    assert isinstance(found, dict)
    assert list(found) == list(FEATURES)
    for feature, expected in bags_of(given, "sum", weights).items():
        assert torch.equal(found[feature], expected)


def test_all_tables_are_asked_in_one_request(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    before = type(store).embedding_bag

    def embedding_bag(self: EmbeddingStore, table: Any, *args: Any, **options: Any) -> Any:
        asked.append(table)
        return before(self, table, *args, **options)

    monkeypatch.setattr(type(store), "embedding_bag", embedding_bag)
    EmbeddingBagCollection(store, FEATURES)(Jagged({name: [[1], [2, 3]] for name in FEATURES}))
    assert len(asked) == 1
    assert set(asked[0]) == {"float32", "int8", "wide"}


def test_weights_and_their_gradient(store: EmbeddingStore, weights: Weights) -> None:
    lists = {"user": [[1, 2, 1], []], "seen": [[7], [8, 9]], "liked": [[3], [4]]}
    features = {"seen": "float32", "liked": "float32", "user": "wide"}
    factors = torch.rand(8, requires_grad=True)
    answer = EmbeddingBagCollection(store, features)(Jagged(lists, factors))
    (answer.values() ** 2).sum().backward()
    theirs = factors.detach().clone().requires_grad_()
    expected, first = {}, 0
    for feature, bags in lists.items():
        ids = torch.tensor([id for bag in bags for id in bag])
        end = first + ids.numel()
        rows = weights[features[feature]]
        module = nn.EmbeddingBag(*rows.shape, mode="sum", _weight=rows)
        expected[feature] = module(ids, torch.tensor([0, len(bags[0])]), theirs[first:end])
        first = end
    sum((each**2).sum() for each in expected.values()).backward()  # type: ignore[union-attr]
    for feature, each in expected.items():
        torch.testing.assert_close(answer[feature], each)
    torch.testing.assert_close(factors.grad, theirs.grad)


def test_rows_of_several_dtypes(store: EmbeddingStore) -> None:
    features = {"a": "float32", "b": "float16"}
    given = Jagged({"a": [[1]], "b": [[2, 3]]})
    mixed = EmbeddingBagCollection(store, features)
    assert mixed(given).values().dtype == torch.float32
    both = {
        "a": (torch.tensor([1]), torch.tensor([0])),
        "b": (torch.tensor([1]), torch.tensor([0])),
    }
    found = mixed(both)
    assert isinstance(found, dict)
    assert [each.dtype for each in found.values()] == [torch.float32, torch.float16]
    half = EmbeddingBagCollection(store, features, dtype=torch.bfloat16)(given)
    assert isinstance(half, KeyedTensor)
    assert half.values().dtype == torch.bfloat16


IDS, FIRST = torch.tensor([1, 2]), torch.tensor([0])
WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no features": ({}, None, InputError, "one feature or more"),
    "integers": ({"a": "integers"}, None, InputError, "'integers': rows of torch.int16"),
    "a feature that is not given": (
        {"a": "float32", "b": "int8"},
        Jagged({"a": [[1]]}),
        InputError,
        r"features \['b'\] are not in what was given: it has \['a'\]",
    ),
    "an id beyond": (
        {"a": "float32", "b": "int8"},
        Jagged({"a": [[1]], "b": [[300]]}),
        IdError,
        "'int8': id 300 is out of range",
    ),
    "weights for one": (
        {"a": "float32", "b": "int8"},
        {"a": (IDS, FIRST, torch.ones(2)), "b": (IDS, FIRST)},
        InputError,
        "for all, or for none",
    ),
    "offsets that fall": (
        {"a": "float32", "b": "int8"},
        {"a": (IDS, torch.tensor([0, 2, 1])), "b": (IDS, FIRST)},
        InputError,
        "must not fall",
    ),
    "offsets beyond": (
        {"a": "float32", "b": "int8"},
        {"a": (IDS, FIRST), "b": (IDS, torch.tensor([0, 9]))},
        InputError,
        "must not fall",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(store: EmbeddingStore, what: str) -> None:
    features, given, error, said = WRONG[what]
    with pytest.raises(error, match=said):
        EmbeddingBagCollection(store, features)(given)


def test_a_last_offset_that_is_not_the_end_is_refused(store: EmbeddingStore) -> None:
    module = EmbeddingBagCollection(store, {"a": "float32"}, include_last_offset=True)
    with pytest.raises(InputError, match="the last offset must be the 2 ids, not 1"):
        module({"a": (IDS, torch.tensor([0, 1]))})


@pytest.fixture(scope="module")
def jagged_tensor() -> ModuleType:
    """TorchRec's module of jagged tensors; the duck above stands for it where it is missing."""
    if importlib.util.find_spec("torchrec") is None:
        pytest.skip("torchrec is not installed: make test-torch")
    with warnings.catch_warnings(action="ignore"):
        return import_module("torchrec.sparse.jagged_tensor")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("by", ["lengths", "offsets"])
def test_torchrec_s_own_jagged_tensors(
    store: EmbeddingStore, weights: Weights, jagged_tensor: Any, by: str
) -> None:
    lists = {"liked": [[1, 2], []], "seen": [[3], [4, 4]], "bought": [[], [5]], "user": [[6], [7]]}
    ours = WithOffsets(lists)
    ends = ours._lengths if by == "lengths" else ours.offsets()
    theirs = jagged_tensor.KeyedJaggedTensor(keys=ours.keys(), values=ours.values(), **{by: ends})
    found = EmbeddingBagCollection(store, FEATURES)(theirs)
    assert isinstance(found, KeyedTensor)
    for feature, expected in bags_of(lists, "sum", weights).items():
        assert torch.equal(found[feature], expected)
    keyed = jagged_tensor.KeyedTensor(found.keys(), found.length_per_key(), found.values())
    assert keyed.offset_per_key() == found.offset_per_key()
    for feature, each in keyed.to_dict().items():
        assert torch.equal(each, found[feature])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_answers_are_those_of_torchrec_s_own_collection(
    store: EmbeddingStore, weights: Weights, jagged_tensor: Any
) -> None:
    with warnings.catch_warnings(action="ignore"):
        from torchrec.modules import embedding_configs, embedding_modules
    lists = {"seen": [[1, 2, 1], []], "liked": [[3], [4, 4]], "user": [[6, 299], [7]]}
    features = {"seen": "float32", "liked": "float32", "user": "wide"}
    configs = [
        embedding_configs.EmbeddingBagConfig(
            name=table,
            num_embeddings=ROWS,
            embedding_dim=weights[table].shape[1],
            feature_names=[name for name in features if features[name] == table],
        )
        for table in ("float32", "wide")
    ]
    collection = embedding_modules.EmbeddingBagCollection(tables=configs)
    for table, bag in collection.embedding_bags.items():
        bag.weight.data.copy_(weights[table])
    ours = WithOffsets(lists)
    jagged = jagged_tensor.KeyedJaggedTensor(
        keys=ours.keys(), values=ours.values(), offsets=ours.offsets()
    )
    expected = collection(jagged)
    found = EmbeddingBagCollection(store, features)(jagged)
    assert isinstance(found, KeyedTensor)
    assert expected.keys() == found.keys()
    assert torch.equal(expected.values(), found.values())


def test_spinning_threads_of_torch_are_left_their_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bandana_kv.torch import requests

    monkeypatch.setattr(requests.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(requests.torch, "get_num_threads", lambda: 6)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert requests.pooling_threads() == 3
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert requests.pooling_threads() == 6
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(requests.torch, "get_num_threads", lambda: 8)
    assert requests.pooling_threads() == 1
