"""Prefetcher: the same answers, read ahead, bounded, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bandana_kv import EmbeddingStore
from bandana_kv.errors import IdError, InputError
from bandana_kv.torch import Embedding, EmbeddingBag, EmbeddingBagCollection, Prefetcher, ahead

ROWS = 300
Batch = tuple[torch.Tensor, torch.Tensor]


def batches(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    offsets = torch.arange(8) * 5
    return [(torch.from_numpy(rng.integers(0, ROWS, 40)), offsets) for _ in range(count)]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()  # generators that were left
    assert not any(ahead._early.values())
    assert not [each.name for each in threading.enumerate() if "prefetch" in each.name]


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device where a request takes 20 ms."""
    from bandana_kv.torch.requests import BagsAsked

    before = BagsAsked.read

    def read(self: BagsAsked) -> list[torch.Tensor]:
        time.sleep(0.02)
        return before(self)

    monkeypatch.setattr(BagsAsked, "read", read)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_answers_are_the_same_and_were_read_ahead(
    store: EmbeddingStore, depth: int, count: int
) -> None:
    bags, given = EmbeddingBag(store, "wide", mode="sum"), batches(count)
    expected = [bags(*batch) for batch in given]
    prefetcher = Prefetcher(given, bags, depth)
    assert len(prefetcher) == count
    found = [bags(*batch) for batch in prefetcher]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    stats = prefetcher.stats()
    assert (stats["batches"], stats["requests"], stats["used"]) == (count, count, count)
    again = [bags(*batch) for batch in prefetcher]
    assert len(again) == count
    assert prefetcher.stats()["used"] == 2 * count


def test_no_more_batches_are_taken_than_asked_for(store: EmbeddingStore) -> None:
    taken = []

    def loader() -> Iterator[Batch]:
        for number, batch in enumerate(batches(9)):
            taken.append(number)
            yield batch

    module = EmbeddingBag(store, "wide")
    for number, batch in enumerate(Prefetcher(loader(), module, depth=3)):
        assert len(taken) == min(9, number + 4)
        assert sum(map(len, ahead._early.values())) <= 4
        module(*batch)


def test_the_model_does_not_wait_for_what_it_takes_longer_than(
    store: EmbeddingStore, slow_reads: None
) -> None:
    module = EmbeddingBag(store, "wide")
    computing = Prefetcher(batches(12), module)
    for batch in computing:
        module(*batch)
        time.sleep(0.04)
    stats = computing.stats()
    assert stats["read_seconds"] >= 12 * 0.02
    assert stats["stall_share"] < 0.2
    assert stats["overlap"] > 0.5
    idle = Prefetcher(batches(12), module)
    for batch in idle:
        module(*batch)
    assert idle.stats()["stall_share"] > 0.5
    assert idle.stats()["overlap"] < 0.5


def test_the_share_of_time_waited_is_what_a_model_sees(
    store: EmbeddingStore, slow_reads: None
) -> None:
    module, seen = EmbeddingBag(store, "wide"), 0.0
    prefetcher = Prefetcher(batches(6), module)
    for batch in prefetcher:
        begun = time.perf_counter()
        module(*batch)
        seen += time.perf_counter() - begun
    assert prefetcher.stats()["stall_seconds"] == pytest.approx(seen, rel=0.2, abs=0.01)


def test_ids_that_changed_meanwhile_are_read_anew(store: EmbeddingStore) -> None:
    module, given = EmbeddingBag(store, "wide", mode="sum"), batches(5)
    prefetcher = Prefetcher(given, module)
    for ids, offsets in prefetcher:
        ids[3] = 7
        expected = store.embedding_bag("wide", ids.numpy(), offsets.numpy(), "sum")
        assert np.array_equal(module(ids, offsets).numpy(), expected)
    assert prefetcher.stats()["used"] == 0


def test_a_copy_of_the_ids_is_recognized(store: EmbeddingStore) -> None:
    module = EmbeddingBag(store, "wide")
    prefetcher = Prefetcher(batches(5), module)
    for ids, offsets in prefetcher:
        module(ids.clone(), offsets.clone())
    assert prefetcher.stats()["used"] == 5


def test_what_is_not_asked_for_is_dropped(store: EmbeddingStore) -> None:
    prefetcher = Prefetcher(batches(5), EmbeddingBag(store, "wide"))
    for number, _ in enumerate(prefetcher):
        assert sum(map(len, ahead._early.values())) <= 3, number
    assert prefetcher.stats()["used"] == 0


def test_leaving_early_leaves_nothing(store: EmbeddingStore, slow_reads: None) -> None:
    module = EmbeddingBag(store, "wide")
    for batch in Prefetcher(batches(9), module):
        module(*batch)
        break


def test_an_error_is_that_of_the_module(store: EmbeddingStore) -> None:
    module, given = EmbeddingBag(store, "wide"), batches(4)
    given[2][0][5] = ROWS
    done = 0
    with pytest.raises(IdError, match="id 300 is out of range"):  # noqa: PT012 - when it is raised
        for batch in Prefetcher(given, module):
            module(*batch)
            done += 1
    assert done == 2


def test_an_error_of_the_loader_comes_out_after_its_batches(store: EmbeddingStore) -> None:
    def loader() -> Iterator[Batch]:
        yield from batches(2)
        raise OSError("gone")

    module, done = EmbeddingBag(store, "wide"), 0
    with pytest.raises(OSError, match="gone"):  # noqa: PT012 - when it is raised
        for batch in Prefetcher(loader(), module):
            module(*batch)
            done += 1
    assert done == 2


@pytest.mark.parametrize("error", [StopIteration, OSError])
def test_a_loader_is_let_go_of_when_it_is_through(
    store: EmbeddingStore, error: type[Exception]
) -> None:
    """Not by the garbage collector, later: its workers would live on."""

    class Source:
        def __init__(self) -> None:
            self.left = batches(3)

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> Batch:
            if not self.left:
                raise error
            return self.left.pop()

    source = Source()
    gone = weakref.ref(source)
    prefetcher = Prefetcher(source, EmbeddingBag(store, "wide"))
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            for batch in prefetcher:
                prefetcher.module(*batch)
        del source, prefetcher
        assert gone() is None
    finally:
        gc.enable()


class Ranker(nn.Module):
    def __init__(self, store: EmbeddingStore) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = Embedding(store, "float32")
        self.towers = nn.ModuleDict(
            {"bags": EmbeddingBagCollection(store, {"a": "wide", "b": "int8"})}
        )
        self.over = nn.Linear(16 + 67 + 16, 1)

    def forward(self, user: torch.Tensor, items: Any) -> torch.Tensor:
        found = self.towers["bags"](items)
        return self.over(torch.cat([self.user(user), found["a"], found["b"]], dim=1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_whole_model(store: EmbeddingStore, compiled: bool) -> None:
    torch._dynamo.reset()
    model = Ranker(store)
    given = [
        {"user": ids[:8], "items": {"a": (ids, offsets), "b": (ids + 0, offsets)}}
        for ids, offsets in batches(6)
    ]
    expected = [model(**batch) for batch in given]
    call: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    prefetcher = Prefetcher(
        given, model, inputs=lambda batch: {"user": batch["user"], "towers.bags": batch["items"]}
    )
    with torch.inference_mode():
        found = [call(**batch) for batch in prefetcher]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert prefetcher.stats()["used"] == prefetcher.stats()["requests"] == 12


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_of_a_data_loader(store: EmbeddingStore, workers: int) -> None:
    ids = torch.arange(240).reshape(60, 4)
    loader: DataLoader[Any] = DataLoader(TensorDataset(ids), 8, num_workers=workers)
    module = EmbeddingBag(store, "wide", mode="sum")
    prefetcher = Prefetcher(loader, module)
    for _ in range(2):
        found = torch.cat([module(batch) for (batch,) in prefetcher])
        assert torch.equal(found, module(ids))
    assert prefetcher.stats()["used"] == 16


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no depth": (lambda s: EmbeddingBag(s, "wide"), {"depth": 0}, "depth 0 is not a whole number"),
    "a model without inputs": (Ranker, {}, "say what its modules are called with"),
    "a model without our modules": (
        lambda _: nn.Linear(1, 1),
        {"inputs": lambda batch: {"": batch}},
        "no module of bandana_kv.torch",
    ),
    "inputs without names": (Ranker, {"inputs": lambda batch: batch}, "say by name .* not tuple"),
    "a name of another module": (
        Ranker,
        {"inputs": lambda batch: {"over": batch}},
        "'over' is no module of bandana_kv.torch",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(store: EmbeddingStore, what: str) -> None:
    make, options, said = WRONG[what]
    with pytest.raises(InputError, match=said):
        list(Prefetcher(batches(2), make(store), **options))
