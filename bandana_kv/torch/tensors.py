"""Tensors as arrays and arrays as tensors, where they lie: nothing is copied on the host."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.rows.table import BFLOAT16
from bandana_kv.serve.store import EmbeddingStore

__all__ = ["array_of", "dtype_to_ask", "numpy_dtype", "onto", "room", "tensor_of", "torch_dtype"]


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor's numbers: those of another device copied to the host, else where they lie.

    numpy has no bfloat16: it is viewed as ``ml_dtypes.bfloat16``.
    """
    host = tensor.detach().cpu()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(BFLOAT16)
    return host.numpy()


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """Return an array, which can be written to, as a tensor on the host, where it lies."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def room(shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    """Return host memory for an answer.

    Pinned memory is torch's own to keep: it hands a block out again when the copies that were
    begun from it are over.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=pinned)


def onto(device: torch.device, host: torch.Tensor) -> torch.Tensor:
    """Return an answer on a device; the copy from pinned memory is not waited for."""
    return host if device.type == "cpu" else host.to(device, non_blocking=host.is_pinned())


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return what numpy calls a dtype of torch.

    Raises
    ------
    InputError
        It has no such numbers.
    """
    if dtype == torch.bfloat16:
        return BFLOAT16
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except (TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"rows are not answered as {dtype!r}; torch.float32 is, say") from error


@functools.cache
def torch_dtype(table: str, dtype: np.dtype[Any]) -> torch.dtype:
    """Return what torch calls the dtype of a table.

    Raises
    ------
    InputError
        It has no such numbers.
    """
    try:
        return tensor_of(np.empty(0, dtype)).dtype
    except (TypeError, ValueError) as error:
        raise InputError(
            f"table {table!r}: torch has no {dtype}; ask the store itself for its rows"
        ) from error


def dtype_to_ask(store: EmbeddingStore, table: str, dtype: torch.dtype | None) -> torch.dtype:
    """Return in which dtype the store answers rows that are wanted in `dtype`.

    That one if the store gives it, else the table's own, from which torch goes on.
    """
    own = torch_dtype(table, store.dtype(table))
    if dtype is None or dtype == own:
        return own
    try:
        store.multi_get(table, np.zeros(0, np.int64), dtype=numpy_dtype(dtype))
    except InputError:
        if not dtype.is_floating_point:
            raise
        return own
    return dtype
