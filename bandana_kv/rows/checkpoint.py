"""Rows of tensors in checkpoints of torch, which finds them; their bytes are read by position."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows.arrays import ArrayRows
from bandana_kv.rows.mapped import FilePlace, MappedRows, bounds, place_of
from bandana_kv.rows.member import choose
from bandana_kv.rows.positioned import opened
from bandana_kv.rows.table import BFLOAT16, RowSource
from bandana_kv.rows.zip_members import first_byte_of, zip_named

__all__ = ["open_checkpoint", "shapes"]

_ZIP_MAGIC = b"PK\x03\x04"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "checkpoints of torch need torch: pip install 'bandana-kv[torch]', "
            "or save the tensor as .safetensors or .npy"
        ) from error
    return torch


def _tensors(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return torch, and all tensors of a file, mapped; of nested dictionaries ``outer.inner``."""
    with opened(path) as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise InputError(
                f"{path}: no checkpoint as torch writes since version 1.6; load it with torch and "
                f"save it again, or say dtype and shape if it is bare numbers: "
                f"{path}:float32:1000x64"
            )
    torch = _torch()
    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return torch, dict(_named(torch, held, ""))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds pickled objects, which could run code, or is damaged; save tensors "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:
        # What a damaged file ends in is up to torch's own unpickler and reader.
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path}: not a complete checkpoint of tensors ({type(error).__name__}: {reason})"
        ) from error


def _named(torch: Any, held: object, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(held, torch.Tensor):
        yield name, held
    elif isinstance(held, Mapping):
        for key, each in held.items():
            yield from _named(torch, each, f"{name}.{key}" if name else str(key))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a file, by name; raises as :func:`open_checkpoint`."""
    _, tensors = _tensors(path)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def open_checkpoint(path: Path, member: str = "") -> RowSource:
    """Return the rows of a tensor in a checkpoint.

    Parameters
    ----------
    path
    member
        The tensor's name; in dictionaries of dictionaries all names, with dots between. "": the
        only one with two dimensions.

    Raises
    ------
    InputError
        Missing, truncated or damaged; pickled objects in it; no such tensor; not two-dimensional,
        or of a dtype that is not read.
    MissingExtraError
        torch is not installed.
    """
    torch, tensors = _tensors(path)
    name = choose(path, "tensor", member, tensors, lambda each: tuple(tensors[each].shape))
    label = f"{path}:{name}" if name else str(path)
    array = _array(label, torch, tensors[name])
    place = place_of(array, private=True)
    if place is None:  # not mapped, or not as the system tells it: rows come out of memory
        return ArrayRows(label, _numbers(torch, tensors[name], array))
    _check_place(path, label, array, place)
    return MappedRows(label, _numbers(torch, tensors[name], array), place)


def _array(label: str, torch: Any, tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array, where it lies; bfloat16 as int16."""
    try:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        array: NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        # Sparse ones, quantised ones, and numbers that numpy has not.
        raise InputError(
            f"{label}: a tensor of {tensor.dtype}, {tensor.layout}, is not read; "
            "save it dense, as numbers that numpy has or bfloat16"
        ) from error
    return array


def _numbers(torch: Any, tensor: Any, array: NDArray[Any]) -> NDArray[Any]:
    return array.view(BFLOAT16) if tensor.dtype == torch.bfloat16 else array


def _check_place(path: Path, label: str, array: NDArray[Any], place: FilePlace) -> None:
    """Refuse a tensor that reaches beyond its record: torch takes lengths as they are claimed."""
    first, end = bounds(array)
    begin = place.first_byte + first - array.ctypes.data
    with opened(path) as file, zip_named(path, "checkpoint"), zipfile.ZipFile(file) as archive:
        for each in archive.infolist():
            if each.header_offset < begin < each.header_offset + each.compress_size + (1 << 18):
                lies = first_byte_of(file, each)
                if lies <= begin and begin + end - first <= lies + each.compress_size:
                    return
    raise InputError(f"{label}: truncated or damaged: does not lie in one record; copy it again")
