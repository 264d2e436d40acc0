"""Rows of a tensor in one of many files, which an index names: ``model.safetensors.index.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bandana_kv.errors import InputError
from bandana_kv.rows import checkpoint, safetensors
from bandana_kv.rows.member import choose
from bandana_kv.rows.positioned import opened
from bandana_kv.rows.table import RowSource

__all__ = ["SUFFIX", "open_sharded"]

SUFFIX = ".index.json"

_MOST_INDEX_BYTES = 100_000_000


class _Kind(NamedTuple):
    """How files of a kind are read."""

    open: Callable[[Path, str], RowSource]
    shapes: Callable[[Path], dict[str, tuple[int, ...]]]


_TORCH = _Kind(checkpoint.open_checkpoint, checkpoint.shapes)
_KINDS = {
    ".safetensors": _Kind(safetensors.SafetensorsRows, safetensors.shapes),
    ".bin": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
}


def open_sharded(path: Path, member: str = "") -> RowSource:
    """Return the rows of a tensor that an index names.

    Parameters
    ----------
    path
        Of the index; the files it names lie beside it.
    member
        The tensor's name; "": the only one with two dimensions.

    Raises
    ------
    InputError
        The index is damaged, a file it names is missing or has not the tensor; and as for a file
        of that kind.
    MissingExtraError
        They are files of torch, which is not installed.
    """
    index = _read_index(path)
    of_file: dict[Path, dict[str, tuple[int, ...]]] = {}

    def shape_of(name: str) -> tuple[int, ...]:
        shard = index[name]
        if shard not in of_file:
            if not shard.is_file():
                raise InputError(f"{path}: names {shard.name}, which is not beside it; copy it too")
            of_file[shard] = _kind(path, shard).shapes(shard)
        if name not in of_file[shard]:
            raise InputError(
                f"{path}: says that {name!r} is in {shard.name}, which has no such tensor; "
                "they are not of one model, copy all of them again"
            )
        return of_file[shard][name]

    name = choose(path, "tensor", member, index, shape_of)
    shape_of(name)
    return _kind(path, index[name]).open(index[name], name)


def _kind(path: Path, shard: Path) -> _Kind:
    kind = _KINDS.get(shard.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: names {shard.name}, which is none of {', '.join(_KINDS)}")
    return kind


def _read_index(path: Path) -> dict[str, Path]:
    """Return which file each tensor is in."""
    with opened(path) as file:
        raw = file.read(_MOST_INDEX_BYTES + 1)
    try:
        if len(raw) > _MOST_INDEX_BYTES:
            raise ValueError("it is too long")
        said = json.loads(raw)["weight_map"]
        for name in said.values():
            # Nothing outside of the index's own directory is opened for it.
            if Path(name).name != name or name in ("", "..") or "\0" in name:
                raise ValueError(f"it names {name!r}, which is no file beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: no index of tensors, or damaged ({type(error).__name__}: {error})"
        ) from error
    return {name: path.parent / shard for name, shard in said.items()}
