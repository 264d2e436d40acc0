"""Adapters: one per storage engine, found by name, loaded when asked for.

A package registers an adapter of its own by naming a subclass of
:class:`~bandana_kv.adapters.contract.Adapter` under the entry point group
``bandana_kv.adapters``.

Imports kernels; no other room imports an engine, and adapters know no table, version or plan.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    Capabilities,
    block_keys,
    describe_key,
)
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.system.permission import permission_named

__all__ = [
    "PAGE_BYTES",
    "Adapter",
    "Capabilities",
    "adapter_class",
    "block_keys",
    "create",
    "describe_key",
    "names",
    "open_existing",
]

_GROUP = "bandana_kv.adapters"

# Name -> module, class, and the package to install; imported on first use, so that an
# engine that is not installed hurts only those who ask for it.
_BUILT_IN = {
    "blockfile": ("bandana_kv.adapters.blockfile", "BlockfileAdapter", ""),
    "lmdb": ("bandana_kv.adapters.lmdb", "LmdbAdapter", "lmdb"),
    "memory": ("bandana_kv.adapters.memory", "MemoryAdapter", ""),
    "resp": ("bandana_kv.adapters.resp", "RespAdapter", "'bandana-kv[cluster]'"),
    "rocksdb": ("bandana_kv.adapters.rocksdb", "RocksdbAdapter", "rocksdict"),
}


def names() -> list[str]:
    """Return the names of all adapters, installed engines or not, sorted."""
    return sorted({*_BUILT_IN, *_plug_ins()})


def adapter_class(name: str) -> type[Adapter]:
    """Return the adapter of a name.

    Parameters
    ----------
    name
        One of :func:`names`.

    Raises
    ------
    InputError
        No such name; the message lists those there are.
    MissingExtraError
        The engine's package is not installed; the message says what to install.
    """
    if name in _BUILT_IN:
        module, attribute, package = _BUILT_IN[name]
        try:
            found = getattr(importlib.import_module(module), attribute)
        except MissingExtraError:
            raise
        except ImportError as error:
            raise MissingExtraError(
                f"the adapter {name!r} needs a package that cannot be imported: "
                f"pip install {package} ({error})"
            ) from error
    else:
        found = _load_plug_in(name)
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise InputError(f"the adapter {name!r} is {found!r}, not a subclass of Adapter")
    return found


@permission_named()
def create(
    name: str, path: str | os.PathLike[str], *, size_hint_bytes: int, pages: int = 1
) -> Adapter:
    """Make a new engine directory and open it for writing.

    Parameters
    ----------
    name
        The adapter, one of :func:`names`.
    path
        A directory that does not exist yet, or is empty.
    size_hint_bytes
        About how many bytes of blocks will be written; more is allowed.
    pages
        Device pages of 4096 bytes per block.

    Returns
    -------
    Adapter
        Open and empty.

    Raises
    ------
    InputError
        Unknown name, or the path holds something.
    MissingExtraError
        The engine is not installed.
    AdapterError
        The engine cannot be opened.
    """
    found = adapter_class(name)
    return found.create(Path(path).absolute(), size_hint_bytes=size_hint_bytes, pages=pages)


@permission_named()
def open_existing(
    name: str, path: str | os.PathLike[str], *, read_only: bool = True, pages: int = 1
) -> Adapter:
    """Open an engine directory that :func:`create` made.

    Parameters
    ----------
    name
        The adapter that made it.
    path
        The directory.
    read_only
        Refuse writes, and write nothing where the engine allows.
    pages
        The pages given to :func:`create`.

    Returns
    -------
    Adapter

    Raises
    ------
    StoreNotFoundError
        There is nothing of that engine; nothing is created.
    InputError, MissingExtraError, AdapterError
        As for :func:`create`.
    """
    found = adapter_class(name)
    return found.open_existing(Path(path).absolute(), read_only=read_only, pages=pages)


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUP)}


def _load_plug_in(name: str) -> object:
    point = _plug_ins().get(name)
    if point is None:
        raise InputError(f"no adapter {name!r}; there are {', '.join(names())}")
    try:
        loaded: object = point.load()
    except ImportError as error:
        owner = point.dist.name if point.dist is not None else point.value
        raise MissingExtraError(
            f"the adapter {name!r} of {owner} cannot be imported: {error}; install what it "
            f"needs, for example by pip install --upgrade {owner}"
        ) from error
    return loaded
