"""Which version of a store is served, and what changes that: refreshes, updates, re-placements."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.disk import retention
from bandana_kv.disk.journal_files import sync_journal
from bandana_kv.errors import BandanaError, InputError, StoreChangedError
from bandana_kv.progress import Progress
from bandana_kv.serve import replacement
from bandana_kv.serve.anchor import Anchor
from bandana_kv.serve.arguments import checked_ids
from bandana_kv.serve.following import Follower, replay
from bandana_kv.serve.opener import Options, open_current, open_version
from bandana_kv.serve.reader import BlockReader
from bandana_kv.serve.replacement import Change, PlacedAnew
from bandana_kv.serve.requests import named
from bandana_kv.serve.updates import Updates
from bandana_kv.serve.version import ServedVersion
from bandana_kv.serve.warmup import warm_up

__all__ = ["Current"]

_log = logging.getLogger("bandana_kv")

# A table that is full grows by this part of itself: what is written for it then, all of the index
# among it, is written a few times for each row in the end.
_GROWTH_PART = 8
# Closing looks this often whether the last call inside has gone.
_LOOK_S = 0.1


class Current:
    """The version that a store serves now; many threads enter it, one at a time changes it.

    Parameters
    ----------
    options
        Of what is opened.
    reader
        Of blocks; closed with this.

    Attributes
    ----------
    serving : ServedVersion
    updates : Updates or None
        What takes updates, once there were any.
    closing : Event
        Set when no more calls are let in.

    Raises
    ------
    BandanaError
        As :func:`bandana_kv.open`; nothing stays open.
    """

    def __init__(self, options: Options, reader: BlockReader) -> None:
        self._options = options
        self._reader = reader
        self.closing = threading.Event()
        self.updates: Updates | None = None
        self._changing = threading.Lock()
        # Open and warm beside the one that is served, until it is current.
        self._next: ServedVersion | None = None
        self.serving, self._follower = _opened(options, None)
        try:
            self._anchor = Anchor(options.root)
            self._check_anchor()
        except BaseException:
            self.serving.retire()
            raise

    def after_fork_in_child(self) -> None:
        """Leave updates to the parent; nobody changes anything here yet."""
        if self.updates is not None:
            self.updates.after_fork_in_child()
            self.updates = None
        self._changing = threading.Lock()

    def enter(self) -> ServedVersion:
        """Begin a call on the version that is served now; it must leave it."""
        while not (serving := self.serving).enter():
            self._refuse_if_closed()
        return serving

    @contextlib.contextmanager
    def inside(self) -> Iterator[ServedVersion]:
        """Be inside of the version that is served now."""
        serving = self.enter()
        try:
            yield serving
        finally:
            # By a single step: Ctrl-C at the beginning of a function would leave it inside.
            serving.inside.pop()
            if serving.retired:
                serving.close_if_empty()

    def _refuse_if_closed(self) -> None:
        if self.closing.is_set():
            raise InputError("the store is closed")

    def refresh(self, warm: Mapping[str, ArrayLike], warm_seconds: float) -> int:
        """Serve the current version, and return its number; see ``EmbeddingStore.refresh``."""
        root = self._options.root
        with self._changing:
            self._refuse_if_closed()
            self._check_anchor()
            old = self.serving
            # Before the one in use looks, so that nothing is written unnoticed in between.
            follower = Follower(root)
            before: ServedVersion | None = old
            if old.left_behind or (
                self.updates is None and not self._follower.catch_up(old.tables.values())
            ):
                before = None  # rows that another process updated are in blocks by now
            elif self._options.versions.current() == old.number:
                return old.number
            with contextlib.ExitStack() as stack:
                since = (0, 0)
                if self.updates is not None:
                    stack.enter_context(self.updates.blocks_held())
                    since = self.updates.bookmark()
                new, is_warm = self._taken_next(), True
                if new is None:
                    new, follower = _opened(self._options, before, follower)
                    is_warm = False
                stack.callback(new.retire)
                self._refuse_other(old, new)
                if warm or not is_warm:
                    self._warm(new, old, warm, warm_seconds)
                self._switch(new, since)
                stack.pop_all()
                self._follower = follower
                self._flush_gone(old, new)
                old.retire()
            return new.number

    def prepare(self, number: int, warm_seconds: float) -> None:
        """Open and warm a version beside the one that is served, for :meth:`refresh` to switch to.

        Raises as :meth:`refresh`; what was prepared before is let go.
        """
        with self._changing:
            self._refuse_if_closed()
            old = self.serving
            if number == old.number or (self._next is not None and self._next.number == number):
                return
            self._drop_next()
            new = open_version(self._options, number, old)
            try:
                self._refuse_other(old, new)
                self._warm(new, old, {}, warm_seconds)
            except BaseException:
                new.retire()
                raise
            self._next = new

    def unprepare(self) -> None:
        """Let go of what was prepared, if something was: it will not be current."""
        if self._next is not None:
            with self._changing:
                self._drop_next()

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.retire()
            self._next = None

    def _taken_next(self) -> ServedVersion | None:
        """Return what was prepared if it is current by now; another one is let go."""
        found, self._next = self._next, None
        if found is None or found.number == self._options.versions.current():
            return found
        found.retire()
        return None

    def _warm(
        self,
        new: ServedVersion,
        old: ServedVersion,
        warm: Mapping[str, ArrayLike],
        warm_seconds: float,
    ) -> None:
        warm_up(
            new.tables,
            old.tables,
            self._reader,
            {name: _warmed(new, name, ids) for name, ids in warm.items()},
            warm_seconds,
            self.closing,
        )

    def has_news(self) -> bool:
        """Return whether another process has updated rows since the last :meth:`refresh`."""
        return self.updates is None and self._follower.has_news()

    def is_behind(self) -> bool:
        """Return whether another version is current, or rows were updated. A look is small."""
        self._check_anchor()
        newest = self._options.versions.current()
        return newest != self.serving.number or self.has_news()

    def _check_anchor(self) -> None:
        """See that nothing is followed or written at the path but this store."""
        serving = self.serving
        self._anchor.check(serving.manifest, serving.held)

    def _refuse_other(self, old: ServedVersion, new: ServedVersion) -> None:
        """See that a version which has become current is of the store that is served."""
        self._check_anchor()
        if old.manifest.store and new.manifest.store != old.manifest.store:
            raise StoreChangedError(
                f"{self._options.root}: version {new.number} is of another store than version "
                f"{old.number}, which goes on being served; close it and open the path again"
            )

    def _switch(
        self, new: ServedVersion, since: tuple[int, int], then: Callable[[], None] = lambda: None
    ) -> None:
        """Serve another version; `then` is done in the same moment, or nothing."""
        old = self.serving

        def switch() -> None:
            then()
            self.serving = new

        if self.updates is None:
            switch()
        else:
            self.updates.switch(old.tables, new.tables, since, switch)
        self._tell_switch(old, new)

    def _tell_switch(self, old: ServedVersion, new: ServedVersion) -> None:
        """Log that another version is served; not that the same one was opened anew."""
        root, before, after = self._options.root, old.number, new.number
        if before != after:
            fields = {"event": "version_switched", "store": str(root), "from": before, "to": after}
            _log.info("%s: version %d -> %d", root, before, after, extra=fields)

    def _flush_gone(self, old: ServedVersion, new: ServedVersion) -> None:
        """Write updated rows into blocks that this process will not serve any more."""
        served = {table.stored.space for table in new.tables.values()}
        gone = {
            name: table for name, table in old.tables.items() if table.stored.space not in served
        }
        if self.updates is None or not gone:
            return
        try:
            self.updates.flush(gone, old, self._reader)
        except BandanaError:
            # They stay in the journal, for whoever serves that version again.
            _log.exception(
                "version %d: updated rows stay in the journal",
                old.number,
                extra={"event": "flush_failed", "version": old.number},
            )

    def updating(self) -> Updates:
        """Return what takes updates; made at the first."""
        if not self.closing.is_set():
            self._check_anchor()
            if self.updates is not None:
                return self.updates
        with self._changing:
            self._refuse_if_closed()
            self._refuse_if_remote()
            if self.updates is None:
                updates = Updates(self._options.root)
                try:
                    self._catch_up()
                except BaseException:
                    updates.close()
                    raise
                self.updates = updates
            return self.updates

    def _refuse_if_remote(self) -> None:
        # The journal is a file of this machine: processes on others could not follow it.
        if any(each.adapter.capabilities.remote for each in self.serving.engines.values()):
            raise InputError(
                f"{self._options.root}: its blocks lie in a cluster, which takes versions instead "
                "of updates; load a new one"
            )

    def _catch_up(self) -> None:
        """Serve all that other processes have updated, in the placement that takes updates."""
        old = self.serving
        root = self._options.root
        current = self._options.versions.current()
        if not self._follower.catch_up(old.tables.values()) or old.number in retention.superseded(
            retention.readable(root), current
        ):
            self.serving, self._follower = _opened(self._options, None)
            old.retire()
            self._tell_switch(old, self.serving)

    def flush(self) -> None:
        """Write all updated rows into their blocks."""
        updates = self.updating()
        with updates.blocks_held(), self.inside() as serving:
            updates.flush(serving.tables, serving, self._reader)

    def place_anew(self, change: Change, progress: Progress) -> PlacedAnew:
        """Move rows of a table; see :func:`bandana_kv.serve.replacement.place_anew`."""
        updates = self.updating()
        with self._changing:
            self._refuse_if_closed()
            named(self.serving, change.table)
            return replacement.place_anew(
                self._options,
                self.serving,
                change,
                updates,
                self._reader,
                self._switch,
                self.closing,
                progress,
            )

    def grow(self, table: str, rows: int) -> None:
        """Give a table room for so many rows, an eighth more at least; raises as `place_anew`."""
        with self.inside() as serving:
            served = named(serving, table)
            stored, entry = served.stored, serving.manifest.tables[table]
            if stored.rows >= rows:
                return  # another caller was first
            per_block = stored.rows_per_block
            wanted = max(rows, stored.rows + stored.rows // _GROWTH_PART)
            wanted = -(-wanted // per_block) * per_block
            if wanted >= 1 << 32:
                raise InputError(f"table {table!r}: more than 2^32 rows; load it as several tables")
            placement = served.placement(entry.placement).extended(wanted)
        self.place_anew(Change(table, placement), Progress())

    def close(self, patience_s: float | None) -> None:
        """Wait for calls inside, `patience_s` at most, then let everything go.

        `closing` is set already.
        """
        with self._changing:
            self._drop_next()
            self.serving.retire()
        end = None if patience_s is None else time.monotonic() + patience_s
        while not self.serving.closed.wait(_LOOK_S):
            if end is not None and time.monotonic() > end:
                return  # what hangs is left to the system
            self.serving.close_if_empty()  # who was the last may have been interrupted
        if self.updates is not None:
            self.updates.close()
        self._anchor.close()
        self._reader.close()


def _opened(
    options: Options, before: ServedVersion | None, follower: Follower | None = None
) -> tuple[ServedVersion, Follower]:
    """Open the current version, with the updates of it that are not in blocks.

    A `follower` that is given was made before the tables of `before` last caught up.
    """
    sync_journal(options.root)
    while True:
        follower = follower or Follower(options.root)
        serving = open_current(options, before)
        try:
            replay(options.root, serving.tables.values())
            if follower.catch_up(serving.tables.values()):
                return serving, follower
        except BaseException:
            serving.retire()
            raise
        # Updates went into blocks meanwhile, which an engine opened before need not see.
        serving.retire()
        before = follower = None


def _warmed(serving: ServedVersion, table: str, ids: ArrayLike) -> NDArray[np.integer[Any]]:
    """Return ids to warm, checked; those that the table has not are left to its error."""
    named(serving, table)
    return checked_ids(table, ids)
