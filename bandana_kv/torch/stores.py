"""Open stores by number: what compiled graphs, which hold no objects, know a store by."""

from __future__ import annotations

import itertools
import weakref

from bandana_kv.errors import InputError
from bandana_kv.serve.store import EmbeddingStore

__all__ = ["Served", "register", "served", "store_of"]

# No locks: a fork may come at any moment, and the child of one would never get them.
_stores: weakref.WeakValueDictionary[int, EmbeddingStore] = weakref.WeakValueDictionary()
_numbers: weakref.WeakKeyDictionary[EmbeddingStore, int] = weakref.WeakKeyDictionary()
_holders: weakref.WeakValueDictionary[int, Served] = weakref.WeakValueDictionary()
_count = itertools.count(1)


class Served:
    """A store as modules hold it: copies of a model share it, other processes open it anew.

    Parameters
    ----------
    store
    number
        By which ops find it in this process.

    Attributes
    ----------
    told : bool
        Whether it has been said that rows are not trained.
    """

    def __init__(self, store: EmbeddingStore, number: int) -> None:
        self.store = store
        self.number = number
        self.told = False

    def __deepcopy__(self, memo: dict[int, object]) -> Served:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self.store,)


def _unpickled(store: EmbeddingStore) -> Served:
    """Hold a store that was opened by unpickling: nobody else has it to close."""
    holder = served(store)
    weakref.finalize(holder, store.close).atexit = False  # then the store ends by itself
    return holder


def register(store: EmbeddingStore, number: int | None = None) -> int:
    """Make a store known to ops by a number, and return it.

    Modules do so by themselves. A program of ``torch.export`` holds the number of the store that it
    was exported with: whoever loads it elsewhere registers the store there under that number.

    Parameters
    ----------
    store
        Stays yours, to hold and to close.
    number
        By default the one that it has, or a new one.

    Returns
    -------
    int

    Raises
    ------
    InputError
        Another store has the number.
    """
    if number is None:
        number = _numbers.get(store)
        while number is None or _stores.get(number, store) is not store:
            number = next(_count)
    if _stores.get(number, store) is not store:
        raise InputError(f"number {number} is that of another store: {_stores[number]!r}")
    _stores[number] = store
    _numbers.setdefault(store, number)
    return number


def served(store: EmbeddingStore) -> Served:
    """Return what modules hold of a store, the same for all of them.

    Raises
    ------
    InputError
        It is no open store.
    """
    if not isinstance(store, EmbeddingStore):
        raise InputError(f"{store!r} is no open store; bandana_kv.open makes one of a path")
    number = register(store)
    holder = _holders.get(number)
    if holder is None:
        holder = _holders[number] = Served(store, number)
    return holder


def store_of(number: int) -> EmbeddingStore:
    """Return the store that is registered under a number.

    Raises
    ------
    InputError
        There is none.
    """
    store = _stores.get(number)
    if store is None:
        raise InputError(
            f"no open store has the number {number} in this process: "
            f"bandana_kv.torch.register(store, {number})"
        )
    return store
