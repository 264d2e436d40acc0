"""The large tables of a model into a store and back, with the model's answers as they were."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from bandana_kv.errors import InputError
from bandana_kv.load.loader import load
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.serve import opening as serving
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.torch.modules import Embedding, EmbeddingBag
from bandana_kv.torch.tensors import array_of, dtype_to_ask

__all__ = ["externalize", "internalize"]

_MIN_BYTES = 64 << 20
_CHUNK_ROWS = 1 << 16
# What else a module may have been given to do around a call.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)

Lookup: TypeAlias = torch.nn.Embedding | torch.nn.EmbeddingBag


def externalize(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    log: AccessLog | Mapping[str, AccessLog] | None = None,
    min_bytes: int = _MIN_BYTES,
    cache_bytes: int | Mapping[str, int] | None = None,
    **options: Any,
) -> EmbeddingStore:
    """Move a model's large tables into a store, and have its layers look up there.

    Each ``nn.Embedding`` and ``nn.EmbeddingBag`` whose weight takes `min_bytes` or more gives way
    to one of this room; a table is called as the first module that has it. Modules that share a
    weight share the table. A weight that something else has as well, an output layer say, stays.

    Parameters
    ----------
    model
        Changed where it is. Subclasses of the two stay as they are.
    path
        Where to make the store: a directory that is not there yet, or empty.
    log
        Which ids requests look up, by table; one log where only one table moves. See
        :func:`bandana_kv.load`.
    min_bytes
        Smaller weights stay in memory.
    cache_bytes
        DRAM for rows; see :func:`bandana_kv.open`.
    **options
        Of :func:`bandana_kv.load`: `adapter`, `store_as`, `placement` and others. With a `store_as`
        that loses something, answers are no longer equal.

    Returns
    -------
    EmbeddingStore
        Open, and yours to close when the model is not called any more.

    Raises
    ------
    InputError
        No weight is large enough, a module has `max_norm`, which would change rows while they are
        looked up, or an argument is wrong.
    BandanaError
        As :func:`bandana_kv.load` and :func:`bandana_kv.open`. After any error the model is as it
        was, and nothing is left at `path`.

    Notes
    -----
    Rows are answered in the weight's dtype. What `sparse` and `scale_grad_by_freq` say is of
    gradients, and means nothing here; :func:`internalize` gives it back. Optimizers that hold the
    weights keep them in memory.

    Cost: of a load. Weights are not copied, unless they lie on a GPU.
    """
    found = _large(model, min_bytes)
    names = _table_names(found)
    root = Path(path).absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is there already; externalize makes a store of its own")
    tables = {names[id(m.weight)]: array_of(m.weight) for m in found.values()}
    logs = _logs(log, tables)
    made = not root.exists()
    try:
        load(root, tables, logs, **options)
        store = serving.open(root, cache_bytes)
        try:
            instead = {
                id(each): _served_instead(store, names[id(each.weight)], each)
                for each in found.values()
            }
        except BaseException:
            store.close()
            raise
    except BaseException:
        _remove(root, made)
        raise
    for name, each in found.items():
        model.set_submodule(name, instead[id(each)])
    return store


def _remove(root: Path, itself: bool) -> None:
    with contextlib.suppress(OSError):  # what went wrong before matters more
        if itself:
            shutil.rmtree(root)
        else:
            for each in root.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()


def _large(model: torch.nn.Module, min_bytes: int) -> dict[str, Lookup]:
    """Return what is to be moved, by every name that it has in the model."""
    users: dict[int, set[int]] = {}
    for module in model.modules():
        for each in module.parameters(recurse=False):
            users.setdefault(id(each), set()).add(id(module))
    found: dict[str, Lookup] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in (torch.nn.Embedding, torch.nn.EmbeddingBag):
            weight = module.weight
            if weight.numel() * weight.element_size() >= min_bytes:
                found[name] = module
    ours = {id(module) for module in found.values()}
    found = {
        name: each for name, each in found.items() if users.get(id(each.weight), set()) <= ours
    }
    for name, module in found.items():
        _check(name, module)
    if not found:
        raise InputError(
            f"the model has no nn.Embedding or nn.EmbeddingBag to itself of {min_bytes} bytes "
            "or more; name another min_bytes"
        )
    return found


def _check(name: str, module: Lookup) -> None:
    if not name:
        raise InputError("the model is the table itself: put it into a module, nn.Sequential say")
    if module.max_norm is not None:
        raise InputError(
            f"{name} has max_norm={module.max_norm}, by which a lookup changes rows: scale the "
            "rows once, set max_norm to None, and externalize then"
        )
    if module.weight.is_meta:
        raise InputError(f"{name} has no numbers yet: its weight is on the meta device")


def _table_names(found: Mapping[str, Lookup]) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, module in found.items():
        names.setdefault(id(module.weight), name)
    return names


def _logs(
    log: AccessLog | Mapping[str, AccessLog] | None, tables: Mapping[str, Any]
) -> dict[str, AccessLog] | None:
    if log is None:
        return None
    if isinstance(log, Mapping):
        return dict(log)
    if len(tables) > 1:
        raise InputError(f"give a log for each table, by name: {', '.join(map(repr, tables))}")
    return dict.fromkeys(tables, log)


def _served_instead(store: EmbeddingStore, table: str, module: Lookup) -> Embedding | EmbeddingBag:
    new: Embedding | EmbeddingBag
    if isinstance(module, torch.nn.EmbeddingBag):
        new = EmbeddingBag(
            store,
            table,
            mode=module.mode,
            include_last_offset=module.include_last_offset,
            padding_idx=module.padding_idx,
            dtype=module.weight.dtype,
        )
    else:
        new = Embedding(store, table, dtype=module.weight.dtype)
    new.training = module.training
    new.was = {  # for `internalize`
        "padding_idx": module.padding_idx,
        "sparse": module.sparse,
        "scale_grad_by_freq": module.scale_grad_by_freq,
        "requires_grad": module.weight.requires_grad,
    }
    _move_hooks(module, new)
    return new


def _move_hooks(old: torch.nn.Module, new: torch.nn.Module) -> None:
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def internalize(model: torch.nn.Module) -> torch.nn.Module:
    """Take tables back into memory: what :func:`externalize` did, undone.

    Parameters
    ----------
    model
        Changed where it is: each :class:`~bandana_kv.torch.Embedding` and
        :class:`~bandana_kv.torch.EmbeddingBag` in it gives way to PyTorch's own, with the rows that
        the store serves now, on the CPU. Those of one table share a weight.

    Returns
    -------
    Module
        The model.

    Raises
    ------
    InputError
        A table is asked by keys, which ``nn.Embedding`` cannot be, or there is nothing to take.
    BandanaError
        As :meth:`~bandana_kv.EmbeddingStore.multi_get`. After any error the model is as it was.

    Notes
    -----
    The store stays open, and at its path. Cost: reads every row once; memory for all of them.
    """
    swaps: dict[str, torch.nn.Module] = {}
    weights: dict[tuple[int, str, torch.dtype], torch.nn.Parameter] = {}
    done: dict[int, torch.nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Embedding | EmbeddingBag):
            if not name:
                raise InputError("give the model that the module is in, not the module itself")
            key = id(module.store), module.table, module.dtype
            if key not in weights:
                rows = _all_rows(module)
                trained = module.was.get("requires_grad", True)
                weights[key] = torch.nn.Parameter(rows, requires_grad=trained)
            if id(module) not in done:
                done[id(module)] = _in_memory(module, weights[key])
            swaps[name] = done[id(module)]
    if not swaps:
        raise InputError("the model has no Embedding or EmbeddingBag of bandana_kv.torch in it")
    for name, new in swaps.items():
        model.set_submodule(name, new)
    return model


def _all_rows(module: Embedding | EmbeddingBag) -> torch.Tensor:
    store, table = module.store, module.table
    if store.key_changes(table) is not None:
        raise InputError(f"table {table!r} is asked by keys; an nn.Embedding has rows from 0 up")
    rows, dim = store.shape(table)
    weight = torch.empty((rows, dim), dtype=module.dtype)
    ask = dtype_to_ask(store, table, module.dtype)
    for ids in _chunks(rows):
        if ask == module.dtype:
            store.multi_get(table, ids, out=array_of(weight[ids[0] : ids[-1] + 1]))
        else:
            some = torch.empty((ids.size, dim), dtype=ask)
            store.multi_get(table, ids, out=array_of(some))
            weight[ids[0] : ids[-1] + 1] = some
    return weight


def _chunks(rows: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    for first in range(0, rows, _CHUNK_ROWS):
        yield np.arange(first, min(first + _CHUNK_ROWS, rows))


def _in_memory(module: Embedding | EmbeddingBag, weight: torch.nn.Parameter) -> Lookup:
    how = dict(module.was)
    how.pop("requires_grad", None)
    rows, dim = weight.shape
    new: Lookup
    if isinstance(module, EmbeddingBag):
        how |= {"mode": module.mode, "include_last_offset": module.include_last_offset}
        how["padding_idx"] = module.padding_idx
        new = torch.nn.EmbeddingBag(rows, dim, **how, _weight=weight)
    else:
        new = torch.nn.Embedding(rows, dim, **how, _weight=weight)
    # Made anew by the constructor where an older torch copies it: shared weights stay shared.
    new.weight = weight
    new.training = module.training
    _move_hooks(module, new)
    return new
