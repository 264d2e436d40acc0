"""The lease of the one process that writes, and its fence.

A writer has a number of its own (INCR), is listed (ZADD), and sets a key that lasts as long as the
lease does by the clock of the server. Another one that is listed and has its key: it takes itself
out again. A lease that is renewed too late is lost: its holder renews no more, and writes nothing
that counts. That it has noticed is not relied upon: see :mod:`bandana_kv.cluster.epochs`.

Lost acknowledged writes: after a number is taken and its barrier put there, the copies that the
caller asks for must have both (WAIT), or the lease is given back. Then no fail-over to one of these
gives the number out a second time.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bandana_kv.cluster import epochs
from bandana_kv.cluster.epochs import Epoch
from bandana_kv.cluster.renewal import Renewal
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    DurabilityError,
    LeaseLostError,
    LoadInProgressError,
)

if TYPE_CHECKING:
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["LEASE_S", "SETTLE_S", "Writer", "writer_of"]

LEASE_S = 30.0
"""How long a writer's lease lasts unless it is renewed."""

SETTLE_S = 30.0
"""How long copies may take to have what was written."""

_WRITERS = "writers"
_TRIES = 6
_JITTER_S = 0.1
# So long a writer that another one has overtaken waits for that one to say whether its version
# came in time.
_VERDICT_S = 2.0


class Writer:
    """Who may write now.

    Parameters
    ----------
    catalogue
        Of the store.
    fence
        Its number; also that of the version which it will write.
    seconds
        How long the lease lasts unless it is renewed.
    copies
        How many copies must have what it writes before it counts as written.

    Attributes
    ----------
    base : Epoch
        What was current when it began.
    """

    def __init__(self, catalogue: Catalogue, fence: int, seconds: float, copies: int) -> None:
        self.catalogue = catalogue
        self.fence = fence
        self.copies = copies
        self.base = epochs.NONE
        self._lasting_ms = max(1, int(seconds * 1000))
        self._renewal = Renewal(self._renew, seconds, catalogue.where)

    def check(self) -> None:
        """See that it holds the lease still, and that nobody has begun after it.

        Raises
        ------
        LeaseLostError
            Nothing that this process writes from now on takes effect. Cost: a round trip.
        """
        if not self._renewal.holds or epochs.now(self.catalogue).fence != self.fence:
            raise self._lost()

    def settle(self) -> None:
        """Wait until the copies have all that was written; raises as `Catalogue.settle`."""
        self.catalogue.settle(self.copies, SETTLE_S)

    def switch(self, version: int) -> None:
        """Make a version the current one.

        Raises
        ------
        LeaseLostError
            Another writer has begun, and the version is not current.
        DurabilityError
            It is current, and may not be so any more after a fail-over of the cluster.
        """
        self.check()
        mine = Epoch(self.fence, self.fence, version)
        epochs.put(self.catalogue, mine)
        until = time.monotonic() + _VERDICT_S
        # Another one that began at this very moment has seen it, or has not.
        while (found := epochs.now(self.catalogue)).since != self.fence:
            if time.monotonic() > until:
                self.catalogue.remove(epochs.CURRENT, str(mine))
                raise self._lost()
            time.sleep(_JITTER_S)
        epochs.prune(self.catalogue, found)
        try:
            self.settle()
        except AdapterError as error:
            raise DurabilityError(
                errno.EIO,
                f"version {version} is current, and may not be so after a fail-over: {error}",
            ) from error

    def give_back(self) -> None:
        """Let others write; whatever fails, the lease runs out by itself."""
        self._renewal.stop()
        with contextlib.suppress(BandanaError):
            withdraw(self.catalogue, self.fence)

    def put_barrier(self) -> None:
        """Shut out all writers with a lower fence, and note what is current."""
        before = epochs.now(self.catalogue)
        while True:
            epochs.put(self.catalogue, Epoch(self.fence, before.since, before.version))
            found = epochs.entries(self.catalogue)
            if epochs.top(found).fence > self.fence:
                raise self._lost()
            # What a woken writer wrote in between counts: some process may have seen it.
            latest = epochs.top(each for each in found if each.fence < self.fence)
            if latest.since <= before.since:
                break
            before = latest
        self.base = before
        self.settle()

    def _renew(self) -> None:
        if self._renewal.holds:
            self.catalogue.put(_key_of(self.fence), b"", self._lasting_ms)

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(
            f"{self.catalogue.where}: this writer (number {self.fence}) was paused or cut off for "
            "longer than its lease, and another one may write now; what it wrote is not served. "
            "Load again"
        )


@contextlib.contextmanager
def writer_of(catalogue: Catalogue, seconds: float, copies: int) -> Iterator[Writer]:
    """Be the one that writes into a store.

    Parameters
    ----------
    catalogue
        Of the store.
    seconds
        After which another may write where this process dies, or is cut off.
    copies
        How many copies must have what is written.

    Raises
    ------
    LoadInProgressError
        Another process writes.
    AdapterError
        There are not so many copies, or the cluster does not answer.
    """
    fence = _fence_of(catalogue, max(1, int(seconds * 1000)))
    writer = None
    try:
        writer = Writer(catalogue, fence, seconds, copies)
        writer.put_barrier()
        yield writer
    finally:
        if writer is not None:
            writer.give_back()
        else:
            withdraw(catalogue, fence)


def _fence_of(catalogue: Catalogue, lasting_ms: int) -> int:
    """Take the lease, and return a number above all before it."""
    for attempt in range(_TRIES):
        current = epochs.now(catalogue).fence
        while (fence := catalogue.increment("fence")) <= current:
            pass  # the count was lost, and what was counted was not
        catalogue.put(_key_of(fence), b"", lasting_ms)
        catalogue.add(_WRITERS, fence, fence)
        others = [int(each) for each in catalogue.members(_WRITERS) if int(each) != fence]
        living = [each for each in others if catalogue.exists(_key_of(each))]
        if not living:
            catalogue.remove(_WRITERS, *others)
            return fence
        withdraw(catalogue, fence)
        if current in living or attempt == _TRIES - 1:
            break
        # It may be about to withdraw for our sake.
        time.sleep(_JITTER_S * (attempt + random.random()))
    raise LoadInProgressError(
        f"{catalogue.where}: another process is loading into it; wait for it or stop it, then its "
        "lease runs out"
    )


def withdraw(catalogue: Catalogue, fence: int) -> None:
    """Give a lease back."""
    catalogue.remove(_WRITERS, fence)
    catalogue.drop(_key_of(fence))


def _key_of(fence: int) -> str:
    return f"writer:{fence}"
