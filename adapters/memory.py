"""Blocks in a dictionary of this process: for tests, and for trying the library out."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    space_bounds,
)
from bandana_kv.errors import InputError, StoreNotFoundError

__all__ = ["MemoryAdapter"]


class _Blocks:
    """One dictionary of blocks, shared by the adapters opened on one path."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.lock = threading.Lock()
        self.of_key: dict[int, bytes] = {}


# Path -> blocks, so that what one adapter loaded another one of this process can open.
_stores: dict[str, _Blocks] = {}


class MemoryAdapter(Adapter):
    """Blocks in this process only; a path is no more than a name for them.

    An empty directory at the path stands for the blocks: once it is removed, they are gone.
    Nothing is shared with other processes, and blocks last until :meth:`forget` or the end
    of the process. A forked child has a copy.

    Parameters
    ----------
    pages
        Blocks of this many times 4096 bytes.
    """

    name: ClassVar[str] = "memory"

    def __init__(self, *, pages: int = 1) -> None:
        super().__init__("(unnamed)", pages=pages)
        self._blocks = _Blocks(pages)

    @classmethod
    def _on_blocks(cls, key: str, blocks: _Blocks, *, read_only: bool) -> Self:
        adapter = cls(pages=blocks.pages)
        adapter._where = key
        adapter._blocks = blocks
        adapter._read_only = read_only
        return adapter

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty store at `path` and open it for writing."""
        key = str(Path(path).resolve())
        del size_hint_bytes  # a dictionary grows
        for stale in [known for known in _stores if not Path(known).is_dir()]:
            del _stores[stale]
        if key in _stores:
            raise InputError(f"{key} already holds a {cls.name} store")
        Path(key).mkdir(parents=True, exist_ok=True)
        _stores[key] = _Blocks(pages)
        return cls._on_blocks(key, _stores[key], read_only=False)

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the store at `path`; StoreNotFoundError if there is none."""
        key = str(Path(path).resolve())
        blocks = _stores.get(key) if Path(key).is_dir() else None
        if blocks is None:
            raise StoreNotFoundError(
                f"no {cls.name} store at {key} in this process; it ends with its process"
            )
        if blocks.pages != pages:
            raise InputError(f"{key} holds blocks of {blocks.pages} pages, not {pages}")
        return cls._on_blocks(key, blocks, read_only=read_only)

    @staticmethod
    def forget(path: str | os.PathLike[str]) -> None:
        """Drop the blocks kept under a path, once the adapters opened on it are gone."""
        _stores.pop(str(Path(path).resolve()), None)

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""
        return Capabilities(
            persistent=False,
            read_only_media=False,
            shared_by_processes=False,
            survives_fork=True,
            queue_depth="none",
        )

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        return pages * PAGE_BYTES

    def _read(self, keys: Keys, out: Payloads) -> None:
        of_key = self._blocks.of_key
        for at, key in enumerate(keys.tolist()):
            value = of_key.get(key)
            if value is None:
                raise self._missing(key)
            if len(value) != self.payload_bytes:
                raise self._wrong_length(key, len(value))
            out[at] = np.frombuffer(value, np.uint8)

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        new = {key: row.tobytes() for key, row in zip(keys.tolist(), payloads, strict=True)}
        with self._blocks.lock:
            self._blocks.of_key.update(new)

    def _bulk_writer(self, count: int) -> BulkWriter:
        del count
        return _Writer(self)

    def _any_stored(self, keys: Keys) -> int | None:
        of_key = self._blocks.of_key
        return next((key for key in keys.tolist() if key in of_key), None)

    def _space_is_empty(self, space: int) -> bool:
        return not self._keys_of(space)

    def _delete_space(self, space: int) -> None:
        with self._blocks.lock:
            for key in self._keys_of(space):
                del self._blocks.of_key[key]

    def _keys_of(self, space: int) -> list[int]:
        first, last = space_bounds(space)
        return [key for key in list(self._blocks.of_key) if first <= key <= last]

    def _close(self) -> None:
        self._blocks = _Blocks(self.pages)


class _Writer:
    """Takes chunks of a bulk load as they come."""

    def __init__(self, adapter: MemoryAdapter) -> None:
        self._adapter = adapter

    def write(self, keys: Keys, payloads: Payloads) -> None:
        self._adapter._write(keys, payloads)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass
