"""Rows of tensors in safetensors files, whose header is read here: 8 bytes of length, then JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.rows.member import choose, with_keys
from bandana_kv.rows.positioned import PositionedFile, RunRows
from bandana_kv.rows.table import BFLOAT16

__all__ = ["DTYPES", "METADATA", "OFFSETS", "SafetensorsRows", "shapes"]

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

OFFSETS = ".offsets"
"""Behind the name of a tensor with the bytes of keys: the one that says where each begins."""

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


def _read_header(path: Path, file: PositionedFile) -> tuple[dict[str, Tensor], object]:
    """Return what lies where, and what else is said.

    All places are checked, so that no bytes are two tensors' rows.
    """
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
    return tensors, said.get(METADATA)


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
        return {name: tensor.shape for name, tensor in _read_header(path, file)[0].items()}
    finally:
        file.close()


class SafetensorsRows(RunRows):
    """Rows of a tensor, read by position; and keys, of another one.

    Parameters
    ----------
    path
    member
        The tensor's name, and behind a colon the one that keys are in: ``user``,
        ``user:user.keys``, ``:user.keys``. Without a name: the only one with two dimensions.

    Raises
    ------
    InputError
        Missing, truncated or damaged; no such tensor; not two-dimensional, or of a dtype that is
        not read.
    """

    def __init__(self, path: Path, member: str = "") -> None:
        file = PositionedFile(path)
        with file.closed_on_error():
            self._tensors, self._metadata = tensors, _ = _read_header(path, file)
            named, key = with_keys(member, tensors)
            name = choose(path, "tensor", named, tensors, lambda each: tensors[each].shape)
            self._key = choose(path, "tensor", key, tensors, lambda _: ()) if key else ""
            tensor = tensors[name]
            dtype = DTYPES.get(tensor.dtype)
            if dtype is None:
                raise InputError(
                    f"{path}:{name}: dtype {tensor.dtype} is not read, of safetensors are "
                    f"{', '.join(DTYPES)}; convert it"
                )
        self._path = path
        super().__init__(f"{path}:{name}", file, tensor.first_byte, tensor.shape, dtype)

    def _read_keys(self) -> NDArray[Any] | None:
        if not self._key:
            return None
        tensors, label = self._tensors, f"{self._path}:{self._key}"
        tensor = tensors[self._key]
        if tensor.dtype == "U8" and self._key + OFFSETS in tensors:
            return self._texts(label)
        dtype = DTYPES.get(tensor.dtype, np.dtype(np.void))
        if dtype.kind not in "iu" or tensor.shape != (self.rows,):
            raise InputError(
                f"{label}: {tensor.dtype} of shape {tensor.shape}; keys are ({self.rows},) whole "
                f"numbers, or U8 with a tensor {self._key}{OFFSETS} beside it"
            )
        wide = np.uint64 if dtype.kind == "u" else np.int64
        return self._numbers(label, tensor).astype(wide, copy=False)

    def _texts(self, label: str) -> NDArray[Any]:
        """Return keys of bytes, or of text where the metadata says ``str``."""
        places = self._tensors[self._key + OFFSETS]
        if places.dtype != "I64" or places.shape != (self.rows + 1,):
            raise InputError(
                f"{label}{OFFSETS}: {places.dtype} of shape {places.shape}, not I64 of "
                f"({self.rows + 1},), where the key of each row begins, and the last ends"
            )
        raw = self._numbers(label, self._tensors[self._key]).tobytes()
        ends = self._numbers(label, places)
        if ends[0] != 0 or ends[-1] != len(raw) or (np.diff(ends) < 0).any():
            raise InputError(f"{label}{OFFSETS}: damaged: is no rising 0 to {len(raw)}")
        of_all = self._metadata if isinstance(self._metadata, Mapping) else {}
        is_text, listed = of_all.get(self._key) == "str", ends.tolist()
        keys = np.empty(self.rows, object)
        for row, (first, end) in enumerate(pairwise(listed)):
            try:
                keys[row] = raw[first:end].decode() if is_text else raw[first:end]
            except UnicodeDecodeError as error:
                raise InputError(f"{label}: the key of row {row} is no UTF-8 ({error})") from error
        return keys

    def _numbers(self, label: str, tensor: Tensor) -> NDArray[Any]:
        dtype = DTYPES[tensor.dtype]
        count = math.prod(tensor.shape)
        self._file.file.seek(tensor.first_byte)
        numbers: NDArray[Any] = np.fromfile(self._file.file, dtype, count)
        if numbers.size != count:
            raise InputError(f"{label}: truncated: cannot be read any more; copy it again")
        return numbers
