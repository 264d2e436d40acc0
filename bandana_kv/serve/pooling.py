"""Rows of bags -> one row a bag: sums, means and maxima, in the order in which ids are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.views import refuse_masked

__all__ = ["Bags", "Mode", "bags_of", "pool"]

Mode = Literal["sum", "mean", "max"]
# Constants of kernels.
_SUM, _MEAN, _MAX = range(3)


@dataclass(frozen=True)
class Bags:
    """Which ids are pooled together.

    Attributes
    ----------
    ids : integer array (n,)
        Those that count: padding is left out.
    offsets : int64 (bags + 1,)
        Bag b has ``ids[offsets[b]:offsets[b + 1]]``.
    weights : float64 or float32 (n,), or empty
    """

    ids: NDArray[np.integer[Any]]
    offsets: NDArray[np.int64]
    weights: NDArray[Any]


def bags_of(
    table: str,
    ids: ArrayLike,
    offsets: ArrayLike | None,
    rows: int,
    *,
    mode: str,
    per_sample_weights: ArrayLike | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Bags:
    """Return what is to be pooled, of arguments as PyTorch's ``embedding_bag`` takes them.

    Raises
    ------
    InputError
        An argument is wrong; says which.
    """
    if mode not in get_args(Mode):
        raise InputError(f"table {table!r}: mode is sum, mean or max, not {mode!r}")
    refuse_masked(f"table {table!r}: ids", ids, IdError)
    refuse_masked(f"table {table!r}: offsets", offsets)
    refuse_masked(f"table {table!r}: per_sample_weights", per_sample_weights)
    given = np.asarray(ids)
    if given.ndim == 2 and offsets is None:
        edges = np.arange(given.shape[0] + 1, dtype=np.int64) * given.shape[1]
    elif given.ndim == 1 and offsets is not None:
        edges = _edges(table, given.size, np.asarray(offsets), include_last_offset)
    else:
        raise InputError(
            f"table {table!r}: give ids (n,) with offsets, or ids (bags, n) without; "
            f"not {given.shape} {'with' if offsets is not None else 'without'} offsets"
        )
    weights = np.zeros(0, np.float32)
    if per_sample_weights is not None:
        weights = np.asarray(per_sample_weights)
        if weights.shape != given.shape or weights.dtype.kind != "f":
            raise InputError(
                f"table {table!r}: per_sample_weights must be floats of shape {given.shape}"
            )
        if mode != "sum":
            raise InputError(f"table {table!r}: per_sample_weights go with mode='sum' alone")
        weights = weights.reshape(-1)
    flat = given.reshape(-1)
    if padding_idx is not None and flat.size:
        kept = flat != (padding_idx if padding_idx >= 0 else padding_idx + rows)
        edges = np.concatenate([[0], np.cumsum(kept)])[edges]
        flat, weights = flat[kept], weights[kept] if weights.size else weights
    return Bags(flat, edges, np.ascontiguousarray(weights))


def _edges(table: str, count: int, offsets: NDArray[Any], include_last: bool) -> NDArray[np.int64]:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or (include_last and not offsets.size):
        raise InputError(f"table {table!r}: offsets must be integers (bags,)")
    edges = offsets.astype(np.int64)
    if not include_last:
        edges = np.append(edges, count)
    if edges.size and (edges[0] != 0 or edges[-1] > count or (np.diff(edges) < 0).any()):
        raise InputError(
            f"table {table!r}: offsets must begin with 0, not fall, and not pass {count} ids"
        )
    return edges


@kernel
def _pool(
    rows: np.ndarray, offsets: np.ndarray, mode: int, weights: np.ndarray, out: np.ndarray
) -> None:
    for bag in range(offsets.size - 1):
        first, last = offsets[bag], offsets[bag + 1]
        for d in range(out.shape[1]):
            out[bag, d] = 0
        for i in range(first, last):
            for d in range(out.shape[1]):
                if mode == _MAX:
                    if i == first or rows[i, d] > out[bag, d] or rows[i, d] != rows[i, d]:
                        out[bag, d] = rows[i, d]
                elif weights.size:
                    out[bag, d] += rows[i, d] * weights[i]
                else:
                    out[bag, d] += rows[i, d]
        if mode == _MEAN and last > first:
            for d in range(out.shape[1]):
                out[bag, d] /= last - first


def pool(rows: NDArray[Any], bags: Bags, mode: str, out: NDArray[Any] | None) -> NDArray[Any]:
    """Return one row a bag, (bags, dim), of the rows' dtype.

    Rows of float16 are pooled in float32 and rounded once. Bags without ids give zeros.

    Raises
    ------
    InputError
        The rows are no floats, or `out` has another shape or dtype.
    """
    if rows.dtype.kind != "f":
        raise InputError(f"rows of {rows.dtype} cannot be pooled; floats can")
    shape = (bags.offsets.size - 1, rows.shape[1])
    wide = np.float64 if rows.dtype.itemsize == 8 else np.float32  # in either byte order
    refuse_masked("out", out)
    if out is not None and (
        not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != rows.dtype
    ):
        raise InputError(f"out must be an array of shape {shape} and dtype {rows.dtype}")
    straight = out is not None and out.dtype == wide and out.flags.c_contiguous
    pooled = out if straight and out is not None else np.empty(shape, wide)
    number = get_args(Mode).index(mode)
    _pool(rows.astype(wide, copy=False), bags.offsets, number, bags.weights.astype(wide), pooled)
    if out is None:
        return pooled.astype(rows.dtype, copy=False)
    if not straight:
        out[...] = pooled
    return out
