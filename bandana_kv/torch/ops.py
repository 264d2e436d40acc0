"""Lookups as ops of torch, ``torch.ops.bandana_kv``: seen by autograd, compilers and exporters.

Only numbers, names and tensors go into an op: a store is known by its number. What an op gives is
known by its shapes alone, so that graphs hold it like any op of torch's own.

They are defined in a library of torch's: ``torch.library.custom_op`` would import the compiler, for
seconds, in the middle of the first lookup.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.torch import ahead
from bandana_kv.torch.requests import BagsAsked, RowsAsked
from bandana_kv.torch.stores import store_of
from bandana_kv.torch.tensors import array_of, onto

__all__ = ["bags", "bags_asked", "rows", "rows_asked"]

Tensor: TypeAlias = torch.Tensor

_library = torch.library.Library("bandana_kv", "DEF")
_BAGS = (
    "int number, str[] tables, int[] parts, SymInt[] bags, int[] dims, str[] dtypes, str mode, "
    "bool last, int? padding_idx"
)
_library.define("rows(Tensor ids, int number, str table, int dim, ScalarType dtype) -> Tensor")
_library.define(f"bags(Tensor ids, Tensor? offsets, Tensor? weights, {_BAGS}) -> Tensor[]")
_library.define(
    f"weights_grad(Tensor[] grads, Tensor ids, Tensor? offsets, Tensor weights, {_BAGS}) -> Tensor"
)


def rows_asked(ids: Tensor, number: int, table: str, dim: int, dtype: torch.dtype) -> RowsAsked:
    """Return what :func:`rows` asks a store for."""
    return RowsAsked(number, table, dim, dtype, ids.device.type == "cuda", array_of(ids))


def rows(ids: Tensor, number: int, table: str, dim: int, dtype: torch.dtype) -> Tensor:
    """Return rows of a table: ``ids.shape + (dim,)``."""
    asked = rows_asked(ids, number, table, dim, dtype)
    return onto(ids.device, ahead.answer(asked)[0])


def _rows_shape(ids: Tensor, _number: int, _table: str, dim: int, dtype: torch.dtype) -> Tensor:
    return ids.new_empty((*ids.shape, dim), dtype=dtype)


def bags_asked(
    ids: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    number: int,
    tables: list[str],
    parts: list[int],
    bags: list[int],
    dims: list[int],
    dtypes: list[str],
    mode: Any,
    last: bool,
    padding_idx: int | None,
) -> BagsAsked:
    """Return what :func:`bags` asks a store for."""
    if weights is not None and weights.dtype == torch.bfloat16:
        weights = weights.float()  # exact; numpy has no bfloat16
    return BagsAsked(
        number,
        tuple(tables),
        tuple(parts),
        tuple(bags),
        tuple(dims),
        tuple(getattr(torch, name) for name in dtypes),
        mode,
        last,
        padding_idx,
        ids.device.type == "cuda",
        array_of(ids),
        None if offsets is None else array_of(offsets),
        None if weights is None else array_of(weights),
    )


def bags(ids: Tensor, offsets: Tensor | None, weights: Tensor | None, *rest: Any) -> list[Tensor]:
    """Return pooled rows, (bags, dim) for each of several answers; see :class:`BagsAsked`."""
    asked = bags_asked(ids, offsets, weights, *rest)
    return [onto(ids.device, each) for each in ahead.answer(asked)]


def _bags_shape(ids: Tensor, *rest: Any) -> list[Tensor]:
    _offsets, _weights, _number, _tables, parts, counts, dims, dtypes, *_ = rest
    return [
        ids.new_empty((counts[part], dim), dtype=getattr(torch, dtype))
        for part, dim, dtype in zip(parts, dims, dtypes, strict=True)
    ]


def weights_grad(
    grads: list[Tensor], ids: Tensor, offsets: Tensor | None, weights: Tensor, *rest: Any
) -> Tensor:
    """Return the gradient by weights: of each id, its row times the gradient of its bag."""
    asked = bags_asked(ids, offsets, None, *rest)
    wide = np.float64 if weights.dtype == torch.float64 else np.float32
    flat = asked.ids.reshape(-1)
    found: NDArray[Any] = np.zeros(flat.size, wide)
    for table, part, grad in zip(asked.tables, asked.parts, grads, strict=True):
        store = store_of(asked.number)
        at, edges = asked.span(part)
        wanted, bag = flat[at], np.repeat(np.arange(edges.size - 1), np.diff(edges))
        kept = np.ones(wanted.size, np.bool_)
        if asked.padding_idx is not None:
            padding = asked.padding_idx
            if padding < 0 and store.key_changes(table) is None:
                padding += store.shape(table)[0]
            kept = wanted != padding
        each: Any = store.multi_get(table, wanted[kept]).astype(wide, copy=False)
        of_bag: Any = array_of(grad).astype(wide, copy=False)[bag[kept]]
        found[at][kept] += np.einsum("nd,nd->n", each, of_bag)
    return torch.from_numpy(found).reshape(ids.shape).to(weights.device, weights.dtype)


def _weights_grad_shape(
    _grads: list[Tensor], ids: Tensor, _offsets: Any, weights: Tensor, *_: Any
) -> Tensor:
    return weights.new_empty(ids.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ARG001 - by name
    ids, offsets, weights, *ctx.rest = inputs
    ctx.save_for_backward(ids, offsets, weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    ids, offsets, weights = ctx.saved_tensors
    if weights is None:
        raise InputError("the rows of a store are not trained: nothing here has a gradient")
    grad = torch.ops.bandana_kv.weights_grad.default(grads, ids, offsets, weights, *ctx.rest)
    return (None, None, grad, *(None for _ in ctx.rest))


for _name, _op, _shape in (
    ("rows", rows, _rows_shape),
    ("bags", bags, _bags_shape),
    ("weights_grad", weights_grad, _weights_grad_shape),
):
    _library.impl(_name, _op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bandana_kv::{_name}", _shape, lib=_library)
torch.library.register_autograd("bandana_kv::bags", _backward, setup_context=_keep, lib=_library)
