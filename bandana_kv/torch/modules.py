"""Rows of a store as layers, called as ``nn.Embedding`` and ``nn.EmbeddingBag`` are."""

from __future__ import annotations

import logging
from typing import Any, Self, get_args

import torch

from bandana_kv.errors import InputError
from bandana_kv.serve.bags import Mode
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.torch import ops
from bandana_kv.torch.ahead import Asked
from bandana_kv.torch.stores import served
from bandana_kv.torch.tensors import dtype_to_ask, torch_dtype

__all__ = ["Embedding", "EmbeddingBag", "Frozen", "checked_mode"]

_log = logging.getLogger("bandana_kv")


class Frozen(torch.nn.Module):
    """What all modules over a store have in common: no parameters, and a store to find.

    Parameters
    ----------
    store
        Stays its owner's to close. A module that was pickled opens it anew, as
        :class:`~bandana_kv.EmbeddingStore` does, and closes it with itself.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        super().__init__()
        self._served = served(store)
        # Compilers take a module's own numbers for constants.
        self._number = self._served.number
        # What `internalize` gives back that means nothing here.
        self.was: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = self._served.number

    @property
    def store(self) -> EmbeddingStore:
        """Where the rows come from."""
        return self._served.store

    def train(self, mode: bool = True) -> Self:
        """Set the mode as any module; the rows do not change, which is logged once a store."""
        if mode and not self._served.told:
            self._served.told = True
            _log.info(
                "rows of tables %s are frozen: training does not change them",
                ", ".join(map(repr, self.store.tables)),
                extra={"event": "rows_frozen", "tables": list(self.store.tables)},
            )
        return super().train(mode)

    def asked(self, *inputs: Any) -> Asked:
        """Return the request that a call with these inputs makes; see :class:`Prefetcher`."""
        raise NotImplementedError


def checked_mode(mode: str) -> Mode:
    """Return a way to pool.

    Raises
    ------
    InputError
        It is none.
    """
    for known in get_args(Mode):
        if mode == known:
            return known
    raise InputError(f"mode is sum, mean or max, not {mode!r}")


class Embedding(Frozen):
    """Rows of a table, called as ``torch.nn.Embedding``.

    Parameters
    ----------
    store
        As :func:`bandana_kv.open` returns it; stays yours to close.
    table
        Name of the table.
    dtype
        Of the output; by default what the table's rows are answered as.

    Attributes
    ----------
    num_embeddings, embedding_dim : int
        The table's shape when the module was made.

    Raises
    ------
    TableNotFoundError, InputError
        There is no such table, or torch has no numbers as its rows'.

    Notes
    -----
    ``forward(input)`` takes integers of any shape on any device, keys where the table has them, and
    returns ``input.shape + (dim,)`` on the input's device, without a gradient. It raises, and
    costs, what :meth:`~bandana_kv.EmbeddingStore.multi_get` does, and some 20 us a call.
    """

    def __init__(
        self, store: EmbeddingStore, table: str, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(store)
        self.table = table
        self.num_embeddings, self.embedding_dim = store.shape(table)
        self._ask = dtype_to_ask(store, table, dtype)
        self.dtype = self._ask if dtype is None else dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids: ``input.shape + (dim,)``."""
        return torch.ops.bandana_kv.rows.default(*self._request(input)).to(self.dtype)

    def asked(self, *inputs: Any) -> Asked:
        """Return the request that a call with these inputs makes."""
        return ops.rows_asked(*self._request(*inputs))

    def _request(self, input: torch.Tensor) -> tuple[Any, ...]:
        return input, self._number, self.table, self.embedding_dim, self._ask

    def extra_repr(self) -> str:
        """Return what is printed of the module."""
        return f"{self.table!r}, {self.num_embeddings}, {self.embedding_dim}, dtype={self.dtype}"


class EmbeddingBag(Frozen):
    """Pooled rows of a table, called as ``torch.nn.EmbeddingBag``.

    Parameters
    ----------
    store, table, dtype
        As of :class:`Embedding`.
    mode
        ``"mean"``, ``"sum"`` or ``"max"``.
    include_last_offset
        Whether offsets also say where the last bag ends.
    padding_idx
        This id counts for nothing and is not looked up; a negative one counts from the table's end.

    Raises
    ------
    TableNotFoundError, InputError
        As :class:`Embedding`; or the table has no floats, or `mode` is none of these.

    Notes
    -----
    ``forward(input, offsets=None, per_sample_weights=None)`` takes ids (n,) with offsets, or
    (bags, n) without, and weights of the same shape with ``"sum"``; it returns (bags, dim) on the
    input's device. Only weights have a gradient, for which their rows are read once more.

    Rows are added in the order of the ids, in the table's dtype, those of float16 in float32 with
    one rounding; what comes out is cast to `dtype`. It raises, and costs, what
    :meth:`~bandana_kv.EmbeddingStore.embedding_bag` does, and some 20 us a call.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        table: str,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(store)
        self.table = table
        self.num_embeddings, self.embedding_dim = store.shape(table)
        self.mode = checked_mode(mode)
        self.include_last_offset = include_last_offset
        self.padding_idx = padding_idx
        own = torch_dtype(table, store.dtype(table))
        if not own.is_floating_point:
            raise InputError(f"table {table!r}: rows of {own} are not pooled; floats are")
        self._own = str(own).removeprefix("torch.")
        self.dtype = own if dtype is None else dtype

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a row for each bag: (bags, dim)."""
        request = self._request(input, offsets, per_sample_weights)
        return torch.ops.bandana_kv.bags.default(*request)[0].to(self.dtype)

    def asked(self, *inputs: Any) -> Asked:
        """Return the request that a call with these inputs makes."""
        return ops.bags_asked(*self._request(*inputs))

    def _request(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> tuple[Any, ...]:
        if input.dim() == 2 and offsets is None:
            bags = input.shape[0]
        elif input.dim() == 1 and offsets is not None and offsets.dim() == 1:
            bags = offsets.shape[0] - self.include_last_offset
        else:
            raise InputError(
                f"table {self.table!r}: give ids (n,) with offsets (bags,), or ids (bags, n) "
                f"without; not {input.dim()} dimensions "
                f"{'with' if offsets is not None else 'without'} offsets"
            )
        if weights is not None and weights.shape != input.shape:
            raise InputError(
                f"table {self.table!r}: per_sample_weights must be of the shape of the ids, "
                f"{tuple(input.shape)}, not {tuple(weights.shape)}"
            )
        # Ids in two dimensions have no offsets of which the last could be left out.
        last = self.include_last_offset and offsets is not None
        where = [self.table], [0], [bags], [self.embedding_dim], [self._own]
        return input, offsets, weights, self._number, *where, self.mode, last, self.padding_idx

    def extra_repr(self) -> str:
        """Return what is printed of the module."""
        return (
            f"{self.table!r}, {self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}, "
            f"dtype={self.dtype}"
        )
