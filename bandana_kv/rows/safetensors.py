"""Rows of tensors in safetensors files, whose header is read here: 8 bytes of length, then JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandana_kv.errors import InputError
from bandana_kv.rows.member import choose
from bandana_kv.rows.positioned import PositionedFile, RunRows
from bandana_kv.rows.table import BFLOAT16

__all__ = ["DTYPES", "METADATA", "SafetensorsRows", "shapes"]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "C64": np.dtype("<c8"),
}
"""What the format calls numbers that a table can hold."""

METADATA = "__metadata__"
"""The one name in a header that is no tensor's."""

_MOST_HEADER_BYTES = 100_000_000  # as the format has it
_MOST_DIMENSIONS = 64


class Tensor(NamedTuple):
    """What a header says of a tensor, with places counted from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    first_byte: int
    end_byte: int


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _read_header(path: Path, file: PositionedFile) -> dict[str, Tensor]:
    """Return what lies where; all of it is checked, so that no bytes are two tensors' rows."""
    size = file.size_bytes
    length = int.from_bytes(file.file.read(8), "little")
    if size < 8 or length > min(_MOST_HEADER_BYTES, size - 8):
        raise InputError(
            f"{path}: truncated, or no safetensors file: a header of {length} bytes, in a file of "
            f"{size}; copy it again"
        )
    try:
        said = json.loads(file.file.read(length), object_pairs_hook=_distinct)
        if not isinstance(said, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: no safetensors file, or damaged: its header cannot be read ({error})"
        ) from error
    tensors = {
        name: _tensor(path, name, entry, 8 + length)
        for name, entry in said.items()
        if name != METADATA
    }
    _check_places(path, tensors, size)
    return tensors


def _tensor(path: Path, name: str, said: object, begin: int) -> Tensor:
    entry = said if isinstance(said, Mapping) else {}
    dtype, shape, places = (entry.get(each) for each in ("dtype", "shape", "data_offsets"))
    sound = (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and isinstance(places, list)
        and len(places) == 2
        and len(shape) <= _MOST_DIMENSIONS
        and all(type(each) is int and 0 <= each < 1 << 63 for each in [*shape, *places])
        and places[0] <= places[1]
    )
    if not sound:
        raise InputError(f"{path}: damaged: what its header says of tensor {name!r} is nonsense")
    found = Tensor(str(dtype), tuple(shape or ()), *(begin + each for each in places or ()))
    number = DTYPES.get(found.dtype)
    if number is not None:
        need = math.prod(found.shape) * number.itemsize
        if need != found.end_byte - found.first_byte:
            raise InputError(
                f"{path}: damaged: tensor {name!r}, {found.dtype} of shape {found.shape}, takes "
                f"{need} bytes, its header says {found.end_byte - found.first_byte}"
            )
    return found


def _check_places(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    end, before = 0, ""
    places = sorted((each.first_byte, each.end_byte, name) for name, each in tensors.items())
    for first, last, name in places:
        if last > size:
            raise InputError(
                f"{path}: truncated: {size} bytes, its header promises {last} (tensor {name!r}); "
                "copy it again"
            )
        if first < end and last > first:
            raise InputError(f"{path}: damaged: tensors {before!r} and {name!r} overlap")
        if last > end:
            end, before = last, name


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a file, by name; raises as :class:`SafetensorsRows`."""
    file = PositionedFile(path)
    try:
        return {name: tensor.shape for name, tensor in _read_header(path, file).items()}
    finally:
        file.close()


class SafetensorsRows(RunRows):
    """Rows of a tensor, read by position.

    Parameters
    ----------
    path
    member
        The tensor's name; "": the only one with two dimensions.

    Raises
    ------
    InputError
        Missing, truncated or damaged; no such tensor; not two-dimensional, or of a dtype that is
        not read.
    """

    def __init__(self, path: Path, member: str = "") -> None:
        file = PositionedFile(path)
        with file.closed_on_error():
            tensors = _read_header(path, file)
            name = choose(path, "tensor", member, tensors, lambda each: tensors[each].shape)
            tensor = tensors[name]
            dtype = DTYPES.get(tensor.dtype)
            if dtype is None:
                raise InputError(
                    f"{path}:{name}: dtype {tensor.dtype} is not read, of safetensors are "
                    f"{', '.join(DTYPES)}; convert it"
                )
        super().__init__(f"{path}:{name}", file, tensor.first_byte, tensor.shape, dtype)
