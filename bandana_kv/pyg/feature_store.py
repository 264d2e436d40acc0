"""FeatureStore: rows of a store behind PyG's interface of remote backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from bandana_kv.serve.store import EmbeddingStore

try:
    import torch
    from torch_geometric.data import FeatureStore as Interface
    from torch_geometric.data import TensorAttr
except ImportError as error:
    raise MissingExtraError(
        "bandana_kv.pyg needs PyTorch and PyG: pip install 'bandana-kv[pyg]'"
    ) from error

__all__ = ["FeatureStore"]

Group = str | tuple[str, str, str] | None
"""A node type, an edge type, or None in a graph that has but one."""
Name = tuple[Group, str]


class FeatureStore(Interface):  # type: ignore[misc, unused-ignore]  # Any without PyG
    """Features of nodes in an open store, for PyG's loaders: ``(features, graph)`` is their data.

    Parameters
    ----------
    store
        Stays yours to close. Row `i` of a table is of node `i`, also where it is asked by keys.
    tables
        Which table holds what: table names by attribute (``{"x": "node"}``) in a graph of one node
        type, by (node type, attribute) in others. By default each table is the attribute ``x`` of
        the node type of its name.

    Raises
    ------
    TableNotFoundError
        Names the tables there are.
    InputError
        A name in `tables` is neither an attribute nor a node type with one.
    MissingExtraError
        PyTorch or PyG is not installed; raised by the import.

    Notes
    -----
    Tensors that are put under other names, labels and masks, are kept in memory, by reference. To
    put rows of a table is :meth:`~bandana_kv.EmbeddingStore.update`: durable, and seen by all.

    Features are frozen: no gradient goes into a row. They are on the CPU, wherever the index is.
    What tensors raise is what :meth:`~bandana_kv.EmbeddingStore.multi_get` does.

    Cost: a batch of a loader is one ``multi_get`` of all its tables, and without a copy what comes
    of it; tables that are asked by keys, one more each. Misses wait for the device without the GIL.

    Safe to use from many threads. A loader's workers may be forked or spawned: in a spawned one the
    store is opened anew, with a cache of its own.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        tables: Mapping[str, str] | Mapping[Name, str] | None = None,
    ) -> None:
        super().__init__()
        if tables is None:
            named: dict[Name, str] = {(table, "x"): table for table in store.tables}
        else:
            named = {_name(given): table for given, table in tables.items()}
        for table in named.values():
            store.shape(table)  # which names the tables there are, if this is none of them
        # Asked by number, one by one: a request of several tables is by what callers ask by.
        self._keyed = {each for each in named.values() if store.key_changes(each) is not None}
        self._store = store
        self._tables = named
        self._tensors: dict[Name, Any] = {}

    def __repr__(self) -> str:
        return f"<FeatureStore on {self._store!r}>"

    def get_all_tensor_attrs(self) -> list[Any]:
        """Return what there is, each as a new ``TensorAttr`` whose index is not set."""
        return [TensorAttr(group, attr) for group, attr in (*self._tables, *self._tensors)]

    def update_tensor(self, tensor: Any, *args: Any, **kwargs: Any) -> bool:
        """Put rows in the place of others; a table's are never removed for it."""
        return bool(self.put_tensor(tensor, *args, **kwargs))

    def _get_tensor(self, attr: Any) -> Any:
        return self._multi_get_tensor([attr])[0]

    def _multi_get_tensor(self, attrs: Sequence[Any]) -> list[Any]:
        """Return a tensor for each; None where there is none of the name."""
        answers: list[Any] = [None] * len(attrs)
        asked: dict[str, NDArray[Any]] = {}
        places: dict[str, int] = {}
        for place, attr in enumerate(attrs):
            name = (attr.group_name, attr.attr_name)
            if name in self._tensors:
                kept = self._tensors[name]
                answers[place] = kept if attr.index is None else kept[attr.index]
            elif (table := self._tables.get(name)) is not None:
                ids = _ids(attr.index, self._store.shape(table)[0])
                if table in asked or table in self._keyed:
                    answers[place] = torch.from_numpy(self._store.rows_at(table, ids))
                else:
                    asked[table], places[table] = ids, place
        for table, rows in self._store.multi_get(asked).items() if asked else ():
            answers[places[table]] = torch.from_numpy(rows)
        return answers

    def _get_tensor_size(self, attr: Any) -> tuple[int, ...] | None:
        """Return the shape; of a table without reading a row."""
        name = (attr.group_name, attr.attr_name)
        if name in self._tensors:
            return tuple(self._get_tensor(attr).shape)
        if name not in self._tables:
            return None
        rows, dim = self._store.shape(self._tables[name])
        return (rows if attr.index is None else _ids(attr.index, rows).size, dim)

    def _put_tensor(self, tensor: Any, attr: Any) -> bool:
        """Update rows of a table, or keep the tensor; False: there is none to put rows into."""
        name = (attr.group_name, attr.attr_name)
        table = self._tables.get(name)
        if table is not None:
            if attr.index is None:
                raise InputError(
                    f"table {table!r}: give the index of the rows to put; all of a table come with "
                    "bandana_kv.load"
                )
            if table in self._keyed:
                raise InputError(
                    f"table {table!r} is asked by keys: update its rows by them, in the store"
                )
            ids = np.atleast_1d(_ids(attr.index, self._store.shape(table)[0]))
            self._store.update(table, ids, np.atleast_2d(_array(tensor)))
        elif attr.index is None:
            self._tensors[name] = torch.as_tensor(tensor)
        elif name in self._tensors:
            self._tensors[name][attr.index] = torch.as_tensor(tensor)
        else:
            return False
        return True

    def _remove_tensor(self, attr: Any) -> bool:
        """Forget a tensor; of a table the name alone, its rows stay in the store."""
        name = (attr.group_name, attr.attr_name)
        held = self._tensors if name in self._tensors else self._tables
        return held.pop(name, None) is not None


def _name(given: str | Name) -> Name:
    """Return the group and the attribute that a table was given by."""
    if isinstance(given, str):
        return None, given
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], str):
        raise InputError(
            f"tables: {given!r} is neither an attribute nor (node type, attribute), as "
            "('paper', 'x') is"
        )
    return given


def _array(given: Any) -> NDArray[Any]:
    """Return a tensor, wherever it is, or whatever else holds numbers, as an array."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        if given.dtype == torch.bfloat16:  # which NumPy has not
            given = given.float()
        return np.asarray(given.numpy())
    return np.asarray(given)


def _ids(index: Any, rows: int) -> NDArray[Any]:
    """Return which rows an index of PyG means: (n,), or () for a single one."""
    if index is None:
        return np.arange(rows)
    if isinstance(index, slice):
        return np.arange(rows)[index]
    ids = _array(index)
    if ids.dtype == np.bool_:
        if ids.shape != (rows,):
            raise InputError(f"a mask of shape {ids.shape} for {rows} rows")
        return np.flatnonzero(ids)
    return ids
