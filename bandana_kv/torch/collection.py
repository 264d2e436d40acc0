"""Features of several tables in one request: what TorchRec's collections of bags are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bandana_kv.errors import InputError
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.torch import ops
from bandana_kv.torch.ahead import Asked
from bandana_kv.torch.modules import Frozen, checked_mode
from bandana_kv.torch.tensors import torch_dtype

__all__ = ["EmbeddingBagCollection", "KeyedTensor"]


class KeyedTensor:
    """Pooled rows of several features side by side, as TorchRec's ``KeyedTensor``.

    Parameters
    ----------
    keys
        Names of the features.
    length_per_key
        How many columns each has.
    values
        (bags, columns of all).
    """

    def __init__(self, keys: list[str], length_per_key: list[int], values: torch.Tensor) -> None:
        self._keys, self._lengths, self._values = keys, length_per_key, values

    def keys(self) -> list[str]:
        """Return the features' names."""
        return self._keys

    def values(self) -> torch.Tensor:
        """Return the columns of all features: (bags, columns)."""
        return self._values

    def length_per_key(self) -> list[int]:
        """Return how many columns each feature has."""
        return self._lengths

    def offset_per_key(self) -> list[int]:
        """Return where each feature's columns begin, and where the last one's end."""
        offsets = [0]
        for length in self._lengths:
            offsets.append(offsets[-1] + length)
        return offsets

    def __getitem__(self, key: str) -> torch.Tensor:
        """Return the columns of a feature: (bags, dim)."""
        at = self._keys.index(key)
        first = self.offset_per_key()[at]
        return self._values[:, first : first + self._lengths[at]]

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Return the columns of each feature by its name."""
        parts = self._values.split(self._lengths, dim=1)
        return dict(zip(self._keys, parts, strict=True))


class EmbeddingBagCollection(Frozen):
    """Pooled rows of several features, of all tables in one request.

    Parameters
    ----------
    store
        As :func:`bandana_kv.open` returns it; stays yours to close.
    features
        Table by feature. Features may share a table.
    mode
        ``"sum"``, ``"mean"`` or ``"max"``, of all features.
    include_last_offset
        Whether offsets in a dictionary also say where the last bag ends: at the last id.
    padding_idx
        This id counts for nothing in any feature, and is not looked up.
    dtype
        Of the output; by default what the tables' rows are answered as.

    Raises
    ------
    TableNotFoundError, InputError
        As :class:`~bandana_kv.torch.EmbeddingBag`.

    Notes
    -----
    ``forward(features)`` takes a ``KeyedJaggedTensor``, TorchRec's or whatever has `keys`,
    `values`, `offsets` or `lengths`, and `weights_or_none`, and returns a :class:`KeyedTensor`; or
    a dictionary of (values, offsets) or (values, offsets, weights), and returns a dictionary.
    Features that are not named in `features` are left alone.

    It raises, and costs, what :meth:`~bandana_kv.EmbeddingStore.embedding_bag` of several tables
    does.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        features: Mapping[str, str],
        *,
        mode: str = "sum",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(store)
        if not features:
            raise InputError("a collection is of one feature or more")
        self.features = dict(features)
        self.mode = checked_mode(mode)
        self.include_last_offset = include_last_offset
        self.padding_idx = padding_idx
        own = [torch_dtype(table, store.dtype(table)) for table in features.values()]
        for table, each in zip(features.values(), own, strict=True):
            if not each.is_floating_point:
                raise InputError(f"table {table!r}: rows of {each} are not pooled; floats are")
        self._dims = [store.shape(table)[1] for table in features.values()]
        self._own = [str(each).removeprefix("torch.") for each in own]
        self.dtype = dtype
        if dtype is None and len(set(own)) == 1:
            self.dtype = own[0]

    def forward(self, features: Any) -> KeyedTensor | dict[str, torch.Tensor]:
        """Return pooled rows by feature; see the class."""
        answers = torch.ops.bandana_kv.bags.default(*self._request(features))
        names = list(self.features)
        if isinstance(features, Mapping):
            if self.dtype is not None:
                answers = [each.to(self.dtype) for each in answers]
            return dict(zip(names, answers, strict=True))
        joined = torch.cat(list(answers), dim=1)
        return KeyedTensor(
            names, self._dims, joined if self.dtype is None else joined.to(self.dtype)
        )

    def asked(self, *inputs: Any) -> Asked:
        """Return the request that a call with these inputs makes."""
        return ops.bags_asked(*self._request(*inputs))

    def _request(self, features: Any) -> tuple[Any, ...]:
        if isinstance(features, Mapping):
            keys = list(self.features)
            ids, offsets, weights, bags, last = self._joined([features[key] for key in keys])
        else:
            keys = list(features.keys())
            ids, offsets, weights, bags = _jagged(features, len(keys))
            last = True
        missing = [name for name in self.features if name not in keys]
        if missing:
            raise InputError(f"features {missing} are not in what was given: it has {keys}")
        parts = [keys.index(name) for name in self.features]
        where = list(self.features.values()), parts, bags, self._dims, self._own
        return ids, offsets, weights, self._number, *where, self.mode, last, self.padding_idx

    def _joined(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """Return ids, offsets, weights and bags of features that come each by itself."""
        starts, bags, shift = [], [], 0
        for values, offsets, *_ in given:
            count = offsets.shape[0] - self.include_last_offset
            starts.append(offsets[:count] + shift)
            bags.append(count)
            shift += values.shape[0]
            checkable = self.include_last_offset and not torch.compiler.is_compiling()
            if checkable and int(offsets[-1]) != values.shape[0]:
                raise InputError(
                    f"the last offset must be the {values.shape[0]} ids, not {int(offsets[-1])}"
                )
        weighted = [each[2] for each in given if len(each) > 2]
        if weighted and len(weighted) < len(given):
            raise InputError("weights are given for some features; give them for all, or for none")
        ids = torch.cat([each[0] for each in given])
        weights = torch.cat(weighted) if weighted else None
        return ids, torch.cat(starts), weights, bags, False

    def extra_repr(self) -> str:
        """Return what is printed of the module."""
        return f"{self.features}, mode={self.mode!r}, dtype={self.dtype}"


def _jagged(features: Any, keys: int) -> tuple[Any, ...]:
    """Return ids, offsets, weights and the bags of each key of a KeyedJaggedTensor."""
    if hasattr(features, "offsets"):
        offsets = features.offsets()
    else:
        lengths = features.lengths()
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    bags, left = divmod(offsets.shape[0] - 1, keys)
    if left:
        raise InputError(f"{offsets.shape[0] - 1} bags are not as many for each of {keys} keys")
    return features.values(), offsets, features.weights_or_none(), [bags] * keys
