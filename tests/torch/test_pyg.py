"""FeatureStore behind PyG's own classes: its base class, its loaders, and training.

PyG's neighbour sampler leaves one step to pyg-lib or torch-sparse; here `bench/sampling.py` does
that step, whether they are installed or not, and the rest, `NeighborLoader` too, is PyG's.
"""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv import AccessLog, EmbeddingStore, Rows
from bandana_kv.errors import IdError, InputError, TableNotFoundError

with warnings.catch_warnings(action="ignore"):  # PyG's own, of what torch calls deprecated
    torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch")
    pyg = pytest.importorskip("torch_geometric", reason="PyG is not installed: make test-torch")
    from torch_geometric.data import Data, HeteroData, TensorAttr
    from torch_geometric.loader import NeighborLoader
    from torch_geometric.nn import SAGEConv

from bandana_kv.pyg import FeatureStore  # needs what may be missing

BENCH = Path(__file__).parents[2] / "bench"
NODES, DIM, CLASSES = 600, 16, 5


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("sampling")


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "node": rng.normal(size=(NODES, DIM)).astype(np.float32),
        "author": rng.normal(size=(80, 8)).astype(np.float32),
        "half": rng.normal(size=(50, 4)).astype(np.float16),
        "count": rng.integers(0, 100, (50, 3)),
        "keyed": rng.normal(size=(60, 8)).astype(np.float32),
    }


@pytest.fixture
def store(tables: dict[str, np.ndarray], tmp_path: Path) -> Iterator[EmbeddingStore]:
    keys = [f"user-{number}" for number in range(60)]
    given: dict[str, Any] = {**tables, "keyed": Rows(tables["keyed"], keys=keys)}
    bandana_kv.load(tmp_path / "store", given, adapter="blockfile")
    with bandana_kv.open(tmp_path / "store", cache_bytes=20_000) as opened:
        yield opened


# -- the interface ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([5, 3, 5, 599]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([7], dtype=torch.int32),
        torch.arange(NODES) % 3 == 0,
        slice(3, 20, 4),
        slice(-5, None),
        slice(None, None, -1),
        None,
        17,
    ],
    ids=str,
)
def test_any_index_that_pyg_takes(
    store: EmbeddingStore, tables: dict[str, np.ndarray], index: Any
) -> None:
    """As ``torch.Tensor`` answers it."""
    features = FeatureStore(store, {"x": "node"})
    wanted = torch.from_numpy(tables["node"])
    if isinstance(index, slice) and index.step == -1:
        wanted = wanted.flip(0)
    elif index is not None:
        wanted = wanted[index]
    answer = features.get_tensor(group_name=None, attr_name="x", index=index)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, wanted)
    size = features.get_tensor_size(group_name=None, attr_name="x", index=index)
    assert size == tuple(torch.atleast_2d(wanted).shape)


def test_rows_of_every_dtype(store: EmbeddingStore, tables: dict[str, np.ndarray]) -> None:
    features = FeatureStore(store)
    half = features["half", "x", torch.tensor([4, 1])]
    assert half.dtype == torch.float16
    assert half.tolist() == tables["half"][[4, 1]].tolist()
    count = features["count", "x", torch.tensor([4, 1])]
    assert count.dtype == torch.int64
    assert count.tolist() == tables["count"][[4, 1]].tolist()


def test_names_and_views(store: EmbeddingStore, tables: dict[str, np.ndarray]) -> None:
    features = FeatureStore(store, {("paper", "x"): "node", (("a", "to", "b"), "w"): "author"})
    attrs = features.get_all_tensor_attrs()
    assert [(a.group_name, a.attr_name) for a in attrs] == [("paper", "x"), (("a", "to", "b"), "w")]
    assert not any(a.is_set("index") for a in attrs)
    attrs[0].index = torch.tensor([1])  # as loaders do
    assert not features.get_all_tensor_attrs()[0].is_set("index")
    assert features.get_tensor_size(TensorAttr("paper", "x")) == (NODES, DIM)
    assert features.get_tensor_size(TensorAttr("paper", "y")) is None
    assert features.get_tensor(TensorAttr("paper", "y", index=None)) is None
    assert features["paper"].x[torch.tensor([2])].tolist() == tables["node"][[2]].tolist()
    assert features["paper", "x"]().shape == (NODES, DIM)
    assert repr(features).startswith("<FeatureStore on <store at ")


def test_several_tables_are_one_answer(
    store: EmbeddingStore, tables: dict[str, np.ndarray]
) -> None:
    """Also a table twice, one that is asked by keys, and a tensor in memory, in their order."""
    features = FeatureStore(
        store,
        {
            ("paper", "x"): "node",
            ("paper", "again"): "node",
            ("user", "x"): "keyed",
            ("author", "x"): "author",
        },
    )
    features["paper", "y", None] = torch.arange(NODES)
    asked = [
        TensorAttr("user", "x", torch.tensor([59, 0])),
        TensorAttr("paper", "x", torch.tensor([5, 6])),
        TensorAttr("author", "x", torch.tensor([79])),
        TensorAttr("paper", "y", torch.tensor([9])),
        TensorAttr("paper", "again", torch.tensor([7])),
    ]
    user, paper, author, label, again = features.multi_get_tensor(asked)
    assert user.tolist() == tables["keyed"][[59, 0]].tolist()
    assert paper.tolist() == tables["node"][[5, 6]].tolist()
    assert author.tolist() == tables["author"][[79]].tolist()
    assert label.tolist() == [9]
    assert again.tolist() == tables["node"][[7]].tolist()


def test_what_is_put(store: EmbeddingStore, tmp_path: Path) -> None:
    """Labels stay in memory; rows of a table are updated, for whoever opens the store."""
    features = FeatureStore(store, {"x": "node", "k": "keyed"})
    assert features.put_tensor(torch.arange(4), group_name=None, attr_name="y", index=None)
    assert features.put_tensor(
        torch.tensor([9]), group_name=None, attr_name="y", index=torch.tensor([2])
    )
    assert features[None, "y", None].tolist() == [0, 1, 9, 3]
    assert not features.put_tensor(
        torch.tensor([9]), group_name=None, attr_name="z", index=torch.tensor([2])
    )

    rows = torch.stack([torch.full((DIM,), 1.5), torch.full((DIM,), 2.5)])
    assert features.put_tensor(rows, group_name=None, attr_name="x", index=torch.tensor([3, 599]))
    assert features.update_tensor(rows[0], group_name=None, attr_name="x", index=4)
    assert features[None, "x", torch.tensor([599, 3, 4])][:, 0].tolist() == [2.5, 1.5, 1.5]
    with pytest.raises(InputError, match="'node': give the index"):
        features.put_tensor(rows, group_name=None, attr_name="x", index=None)
    with pytest.raises(InputError, match="'keyed' is asked by keys"):
        features.put_tensor(rows, group_name=None, attr_name="k", index=torch.tensor([0, 1]))

    assert features.remove_tensor(group_name=None, attr_name="x", index=None)
    assert features.remove_tensor(group_name=None, attr_name="y", index=None)
    assert not features.remove_tensor(group_name=None, attr_name="y", index=None)
    assert [a.attr_name for a in features.get_all_tensor_attrs()] == ["k"]
    assert store.multi_get("node", [3])[0, 0] == 1.5


def test_what_is_refused(store: EmbeddingStore) -> None:
    with pytest.raises(TableNotFoundError, match="nodes"):
        FeatureStore(store, {"x": "nodes"})
    with pytest.raises(InputError, match="neither an attribute"):
        FeatureStore(store, {("paper", "x", 3): "node"})  # type: ignore[dict-item]
    features = FeatureStore(store, {"x": "node"})
    for wrong in (torch.tensor([NODES]), torch.tensor([-1]), NODES):
        with pytest.raises(IdError):
            features.get_tensor(group_name=None, attr_name="x", index=wrong)
    with pytest.raises(InputError, match="mask"):
        features.get_tensor(group_name=None, attr_name="x", index=torch.ones(3, dtype=torch.bool))


def test_it_goes_to_another_process(store: EmbeddingStore, tables: dict[str, np.ndarray]) -> None:
    features = FeatureStore(store, {"x": "node"})
    features[None, "y", None] = torch.arange(4)
    there = pickle.loads(pickle.dumps(features))
    with there._store:
        assert there[None, "x", torch.tensor([8])].tolist() == tables["node"][[8]].tolist()
        assert there[None, "y", None].tolist() == [0, 1, 2, 3]


# -- loaders ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log() -> AccessLog:
    """Who links to whom: more to the first nodes than to others, and in groups."""
    rng = np.random.default_rng(1)
    return AccessLog.from_requests(
        np.unique(
            np.concatenate(
                [rng.zipf(1.5, 4) % NODES, (node // 20 * 20 + rng.integers(0, 20, 6)) % NODES]
            )
        )
        for node in range(NODES)
    )


def graph_of(edges: Any) -> Any:
    graph = Data(num_nodes=NODES)
    graph.put_edge_index(edges, layout="coo", size=(NODES, NODES))
    return graph


def labels_of(rows: np.ndarray) -> Any:
    return torch.from_numpy(rows[:, :CLASSES].argmax(1))


class Sage(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(DIM, 32), SAGEConv(32, CLASSES)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def trained(loader: Any, epochs: int) -> list[float]:
    """Return the loss of every step."""
    torch.manual_seed(0)
    model = Sage()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            answer = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = torch.nn.functional.cross_entropy(answer, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def loader_of(sampling: ModuleType, data: Any, **options: Any) -> Any:
    sampler = sampling.NumpySampler(data, [6, 4])
    generator = torch.Generator().manual_seed(0)
    settings = {"batch_size": 64, "shuffle": True, "generator": generator, **options}
    with warnings.catch_warnings(action="ignore"):
        return NeighborLoader(
            data, [6, 4], input_nodes=torch.arange(NODES), neighbor_sampler=sampler, **settings
        )


def test_training_is_as_with_features_in_memory(
    store: EmbeddingStore, tables: dict[str, np.ndarray], sampling: ModuleType, log: AccessLog
) -> None:
    """GraphSAGE through `NeighborLoader`: the loss of every step, to the last bit."""
    rows = tables["node"]
    edges = sampling.graph_of(log.offsets, log.ids, NODES)
    in_memory = Data(x=torch.from_numpy(rows), y=labels_of(rows), edge_index=edges)
    wanted = trained(loader_of(sampling, in_memory), 3)

    features = FeatureStore(store, {"x": "node"})
    features[None, "y", None] = labels_of(rows)
    graph = graph_of(edges)
    losses = trained(loader_of(sampling, (features, graph)), 3)
    assert losses == wanted
    assert losses[-1] < losses[0] / 2
    stats = store.stats()["node"]
    assert 0 < stats["hits"] < stats["lookups"]

    lean = FeatureStore(store, {"x": "author"})  # another's rows give another curve
    assert lean.get_tensor_size(TensorAttr(None, "x")) == (80, 8)


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_read_for_themselves(
    store: EmbeddingStore,
    tables: dict[str, np.ndarray],
    sampling: ModuleType,
    log: AccessLog,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCH))  # a spawned worker imports the sampler by name
    features = FeatureStore(store, {"x": "node"})
    graph = graph_of(sampling.graph_of(log.offsets, log.ids, NODES))
    data = (features, graph)
    loader = loader_of(sampling, data, num_workers=2, multiprocessing_context=start, generator=None)
    seen = 0
    with warnings.catch_warnings(action="ignore"):  # of a fork among threads
        for batch in loader:
            assert batch.x.numpy().tolist() == tables["node"][batch.n_id.numpy()].tolist()
            seen += batch.batch_size
    assert seen == NODES


def test_nodes_of_several_types(
    store: EmbeddingStore, tables: dict[str, np.ndarray], sampling: ModuleType
) -> None:
    rng = np.random.default_rng(2)
    graph = HeteroData()
    graph["node"].num_nodes, graph["author"].num_nodes = NODES, 80
    writes = np.stack([rng.integers(0, 80, 2000), rng.integers(0, NODES, 2000)])
    cites = np.stack([rng.integers(0, NODES, 3000), rng.integers(0, NODES, 3000)])
    graph["author", "writes", "node"].edge_index = torch.from_numpy(writes)
    graph["node", "cites", "node"].edge_index = torch.from_numpy(cites)
    features = FeatureStore(store, {("node", "x"): "node", ("author", "x"): "author"})
    data = (features, graph)
    sampler = sampling.NumpySampler(data, [5, 3])
    with warnings.catch_warnings(action="ignore"):
        loader = NeighborLoader(
            data,
            [5, 3],
            input_nodes=("node", torch.arange(100)),
            neighbor_sampler=sampler,
            batch_size=32,
        )
    for batch in loader:
        for kind in ("node", "author"):
            assert batch[kind].x.tolist() == tables[kind][batch[kind].n_id].tolist()
        source, target = batch["author", "writes", "node"].edge_index
        pairs = set(map(tuple, writes.T.tolist()))
        authors, nodes = batch["author"].n_id[source], batch["node"].n_id[target]
        assert set(zip(authors.tolist(), nodes.tolist(), strict=True)) <= pairs
    authors_log = AccessLog.from_neighbors(loader, node_type="author")
    assert authors_log.rows <= 80
    assert authors_log.requests > 100


# -- the log of a sampler ---------------------------------------------------------------------


def test_a_log_of_the_sampler_places(sampling: ModuleType, log: AccessLog, tmp_path: Path) -> None:
    """Placed by what the sampler gives, an epoch reads fewer blocks than in order of the nodes."""
    shuffled = np.random.default_rng(3).permutation(NODES)  # so that ids say nothing
    edges = torch.from_numpy(shuffled)[sampling.graph_of(log.offsets, log.ids, NODES)]
    graph = graph_of(edges)
    loader = loader_of(sampling, graph, batch_size=8)
    neighbourhoods = AccessLog.from_neighbors(loader, epochs=2)
    batches = AccessLog.from_neighbors(loader, whole=True)
    assert batches.requests == NODES // 8
    assert neighbourhoods.requests > 2 * NODES
    centres = {int(neighbourhoods.request(r)[0]) for r in range(neighbourhoods.requests)}
    assert centres == set(range(NODES))
    linked = set(map(tuple, edges.T.tolist()))
    centre, *others = neighbourhoods.request(0).tolist()
    assert others
    assert all((other, centre) in linked for other in others)

    rows, reads = np.random.default_rng(4).random((NODES, 128), np.float32), {}
    for name, logs in (("identity", None), ("shp", {"node": neighbourhoods})):
        path = tmp_path / name
        bandana_kv.load(path, {"node": rows}, logs, adapter="blockfile", placement=name)
        with bandana_kv.open(path, cache_bytes=20_000) as store:
            features = FeatureStore(store, {"x": "node"})
            for batch in loader_of(sampling, (features, graph), batch_size=8):
                assert batch.x.tolist() == rows[batch.n_id].tolist()
            reads[name] = store.stats()["node"]["block_reads"]
    assert reads["shp"] < 0.9 * reads["identity"]
