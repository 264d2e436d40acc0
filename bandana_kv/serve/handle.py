"""One table of a store, to be handed to whoever needs no more: ``store["user"]``."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["TableHandle"]


class _Store(Protocol):
    """What a handle asks of :class:`EmbeddingStore`."""

    def multi_get(
        self,
        table: str,
        ids: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        dtype: DTypeLike | None = None,
        missing: Any = "error",
    ) -> Any: ...

    def multi_get_raw(self, table: str, ids: ArrayLike) -> NDArray[np.uint8]: ...

    def get(self, table: str, id: int) -> NDArray[Any]: ...

    def upsert(self, table: str, keys: ArrayLike, rows: ArrayLike) -> None: ...

    def delete(self, table: str, keys: ArrayLike) -> int: ...

    def shape(self, table: str) -> tuple[int, int]: ...

    def dtype(self, table: str) -> np.dtype[Any]: ...


class TableHandle:
    """A table of an open store, by its name: whichever version the store serves.

    Parameters
    ----------
    store
        Stays its owner's to close.
    name
        Of the table.

    Notes
    -----
    All that is here raises what the store's own methods raise; after a switch to a version without
    the table, a TableNotFoundError.
    """

    def __init__(self, store: _Store, name: str) -> None:
        self.store = store
        self.name = name

    def multi_get(
        self,
        ids: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        dtype: DTypeLike | None = None,
        missing: Any = "error",
    ) -> Any:
        """Return rows as :meth:`EmbeddingStore.multi_get` does."""
        return self.store.multi_get(self.name, ids, out=out, dtype=dtype, missing=missing)

    def multi_get_raw(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """Return rows as :meth:`EmbeddingStore.multi_get_raw` does."""
        return self.store.multi_get_raw(self.name, ids)

    def get(self, id: int) -> NDArray[Any]:
        """Return the row of one id: (dim,)."""
        return self.store.get(self.name, id)

    def upsert(self, keys: ArrayLike, rows: ArrayLike) -> None:
        """Replace and add rows as :meth:`EmbeddingStore.upsert` does."""
        self.store.upsert(self.name, keys, rows)

    def delete(self, keys: ArrayLike) -> int:
        """Take keys out as :meth:`EmbeddingStore.delete` does."""
        return self.store.delete(self.name, keys)

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows there are, and how many numbers a row."""
        return self.store.shape(self.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""
        return self.store.dtype(self.name)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows, dim = self.shape
        return f"<table {self.name!r}: {rows} rows of {dim} {self.dtype}>"
