"""One version as a process serves it, and the engines that versions share."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv import adapters
from bandana_kv.disk.manifest import Manifest, engine_path
from bandana_kv.serve.inflight import InFlight
from bandana_kv.serve.table import ServedTable
from bandana_kv.serve.tables import Tables
from bandana_kv.system.forks import at_fork

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["ServedVersion", "SharedEngine"]

_log = logging.getLogger("bandana_kv")
# Of all its tables, those read ahead included; requests of more bring memory of their own.
_BLOCKS_IN_FLIGHT = 4096
_MOST_TOGETHER = 64


class SharedEngine:
    """An engine that one or more served versions use; the last of them closes it.

    Parameters
    ----------
    adapter
        The open engine.
    owned
        Close it at the end; False: it is the user's.
    """

    def __init__(self, adapter: Adapter, *, owned: bool) -> None:
        self.adapter = adapter
        self.in_flight = InFlight(adapter.payload_bytes, _BLOCKS_IN_FLIGHT)
        self._owned = owned
        self._users = 0
        self._opening = threading.Lock()
        self._writable: Adapter | None = None
        self._parents: Adapter | None = None

    @property
    def left_behind(self) -> bool:
        """Whether this is a forked child, and its parent wrote: it must be opened anew."""
        return self._parents is not None

    def after_fork_in_child(self) -> None:
        """Leave writing to the parent; what it has open is kept from being closed here."""
        self._opening = threading.Lock()
        self.in_flight.after_fork_in_child()
        self._parents, self._writable = self._writable or self._parents, None

    @property
    def newest(self) -> Adapter:
        """The engine that sees all that this process has written."""
        return self._writable or self.adapter

    @property
    def sees_all(self) -> bool:
        """Whether it has all blocks, whenever they were written.

        Opened to read, an engine may know only those there were then.
        """
        return self._writable is not None or not self._owned

    def writable(self, path: Path) -> Adapter:
        """Return the engine opened to write; it stays open for as long as this one."""
        if not self._owned:
            return self.adapter
        with self._opening:
            if self._writable is None:
                self._writable = adapters.open_existing(
                    self.adapter.name, path, pages=self.adapter.pages, read_only=False
                )
            return self._writable

    def take(self) -> None:
        """Count one more version."""
        with _engines_lock:
            self._users += 1

    def give_back(self) -> None:
        """Count one less."""
        with _engines_lock:
            self._users -= 1
            last = not self._users
        if last and self._owned:
            if self._writable is not None:
                self._writable.close()
            self.adapter.close()


class ServedVersion:
    """A version that is open for serving; but for the calls inside, nothing in it changes.

    A call that has entered finishes on this version. Once it is retired nobody enters any
    more, and the last one out closes it.

    Parameters
    ----------
    manifest
        What the version is made of.
    tables
        By name.
    cache_bytes
        The DRAM that each table was given.
    engines
        By segment and pages of a block.
    resources
        What is closed at the end: the engines first, then the lock that keeps the files.

    held
        Of the manifest's file, which stays open.
    """

    def __init__(
        self,
        manifest: Manifest,
        tables: Mapping[str, ServedTable],
        cache_bytes: Mapping[str, int],
        engines: Mapping[tuple[int, int], SharedEngine],
        resources: contextlib.ExitStack,
        held: os.stat_result,
    ) -> None:
        self.manifest = manifest
        self.tables = dict(tables)
        self.cache_bytes = dict(cache_bytes)
        self.engines = dict(engines)
        self.held = held
        self.closed = threading.Event()
        self._resources = resources
        self._together: dict[tuple[str, ...], Tables] = {}
        self.retired = False
        self._begin()
        with _versions_lock:
            _versions.add(self)

    def _begin(self) -> None:
        # One entry a call. Appending and popping are single steps of the interpreter: a lock
        # around a count would cost a lookup of a single row three times as much.
        self.inside: list[None] = []
        self._ending = threading.Lock()

    def after_fork_in_child(self) -> None:
        """Begin anew without calls: the threads that made them do not exist here."""
        self._begin()
        for engine in self.engines.values():
            engine.after_fork_in_child()

    @property
    def number(self) -> int:
        """The number of the version."""
        return self.manifest.version

    @property
    def left_behind(self) -> bool:
        """Whether a fork took this to where an engine of it must be opened anew."""
        return any(engine.left_behind for engine in self.engines.values())

    def writable(self, root: Path, table: str) -> Adapter:
        """Return the engine of a table, opened to write.

        Raises
        ------
        AdapterError
            The engine cannot be written to, or another process does.
        """
        entry = self.manifest.tables[table]
        key = (entry.segment, entry.pages)
        return self.engines[key].writable(engine_path(root, *key))

    def together(self, names: tuple[str, ...]) -> Tables:
        """Return these tables, which it has, to be asked at once; made when first needed."""
        found = self._together.get(names)
        if found is None:
            if len(self._together) >= _MOST_TOGETHER:
                self._together.clear()
            found = self._together[names] = Tables([self.tables[name] for name in names])
        return found

    def enter(self) -> bool:
        """Begin a call; False: the version was retired."""
        # First in, then look: whoever retires it does so before looking who is in.
        try:
            self.inside.append(None)
            if not self.retired:
                return True
        except BaseException:
            self.inside.pop()  # Ctrl-C came when it had just gone in
            raise
        self.leave()
        return False

    def leave(self) -> None:
        """End a call. Where Ctrl-C may come its two steps are done in place instead."""
        self.inside.pop()
        if self.retired:
            self.close_if_empty()

    def retire(self) -> None:
        """Let nobody enter any more."""
        self.retired = True
        self.close_if_empty()

    def close_if_empty(self) -> None:
        """Close what was retired, if nobody is inside any more."""
        with self._ending:
            if self.inside or self.closed.is_set():
                return
            try:
                self._resources.close()
            except Exception:
                # Whoever happens to be last has its rows, and no part in this.
                _log.exception(
                    "version %d: closing it failed",
                    self.number,
                    extra={"event": "close_failed", "version": self.number},
                )
            finally:
                self.closed.set()


_engines_lock = threading.Lock()
_versions_lock = threading.Lock()
_versions: weakref.WeakSet[ServedVersion] = weakref.WeakSet()


def _before_fork() -> None:
    _versions_lock.acquire()
    _engines_lock.acquire()


def _after_fork_in_parent() -> None:
    _engines_lock.release()
    _versions_lock.release()


def _after_fork_in_child() -> None:
    _after_fork_in_parent()
    for version in _versions:
        version.after_fork_in_child()


at_fork(
    "versions",
    before=_before_fork,
    in_parent=_after_fork_in_parent,
    in_child=_after_fork_in_child,
)
