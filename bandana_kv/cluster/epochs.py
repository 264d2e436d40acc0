"""Which version is current: one sorted set, of which the highest epoch counts.

Each writer has a number of its own, its *fence*, which rises from writer to writer. Two things are
written under it. First, when it has taken the lease, a *barrier*: its fence, with the version that
is current anyway. In the end, its own version. Whoever reads takes the entry with the highest
fence; so a writer that was paused past its lease, and woken when another one has put its barrier
there, can write what it likes: its fence is lower, and nobody looks at it.

An entry also says in which epoch its version became current (`since`). A process follows an entry
only where that is later than what it follows: it never goes back by itself, whatever a fail-over
of the cluster may have lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from bandana_kv.errors import FormatError

if TYPE_CHECKING:
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["NONE", "Epoch", "entries", "now", "prune", "put", "top"]

CURRENT = "current"


class Epoch(NamedTuple):
    """An entry; they are ordered, the highest counts.

    Attributes
    ----------
    fence : int
        Of the writer that made it.
    since : int
        The fence of the writer that made this version current.
    version : int
        0: there is none yet.
    """

    fence: int
    since: int
    version: int

    def __str__(self) -> str:
        return f"{self.fence}:{self.since}:{self.version}"


NONE = Epoch(0, 0, 0)


def _parsed(text: str) -> Epoch:
    try:
        fence, since, version = map(int, text.split(":"))
    except ValueError as error:
        raise FormatError(
            f"the catalogue says {text!r} of the current version; it is not of this release, or "
            "somebody else writes there"
        ) from error
    return Epoch(fence, since, version)


def entries(catalogue: Catalogue) -> list[Epoch]:
    """Return all entries, the highest last."""
    return sorted(map(_parsed, catalogue.members(CURRENT)))


def top(found: Iterable[Epoch]) -> Epoch:
    """Return the entry that counts."""
    return max(found, default=NONE)


def now(catalogue: Catalogue) -> Epoch:
    """Return what is current. Cost: one round trip."""
    return top(entries(catalogue))


def put(catalogue: Catalogue, entry: Epoch) -> None:
    """Add an entry; those that it outdoes stay."""
    catalogue.add(CURRENT, entry.fence, str(entry))


def prune(catalogue: Catalogue, kept: Epoch) -> None:
    """Take out the entries that one outdoes."""
    catalogue.remove(CURRENT, *(str(each) for each in entries(catalogue) if each < kept))
