"""What an operator asks of a store in a cluster: versions, who serves them, and the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bandana_kv.cluster import epochs, leases, records, sweeping
from bandana_kv.cluster.reach import Place, Tls, adapter_on, catalogue_of, place_of
from bandana_kv.cluster.writing import LEASE_S, Writer, writer_of
from bandana_kv.errors import InputError, StoreNotFoundError

if TYPE_CHECKING:
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["Version", "rollback", "sweep", "versions"]


@dataclass(frozen=True)
class Version:
    """A version that a store in a cluster keeps.

    Attributes
    ----------
    number : int
    created : str
        When it was loaded: ISO 8601, UTC.
    tables : tuple of str
    current : bool
        Whether processes that serve switch to it.
    processes : tuple of str
        Those that serve it, or are about to, and whose leases have not run out: host, process id
        and a random number.
    """

    number: int
    created: str
    tables: tuple[str, ...]
    current: bool
    processes: tuple[str, ...]


def versions(
    address: str,
    *,
    prefix: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls = None,
) -> list[Version]:
    """Return the versions that a store in a cluster keeps, oldest first, and who serves them.

    Raises
    ------
    StoreNotFoundError
        The cluster has no store of that prefix.
    InputError, MissingExtraError, AdapterError
        As :func:`bandana_kv.cluster.open`.
    """
    place = place_of(address, prefix, user, password, tls)
    with contextlib.closing(catalogue_of(place)) as catalogue:
        current = _current(catalogue)
        living = leases.living(catalogue)
        listed = {*sweeping.whole_versions(catalogue)}.union(*living.values())
        found = []
        for number in sorted(listed):
            record = records.record_of(catalogue, number)
            if record is not None:
                who = tuple(sorted(name for name, held in living.items() if number in held))
                found.append(Version(number, record.created, record.tables, number == current, who))
        return found


def rollback(
    address: str,
    version: int | None = None,
    *,
    prefix: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls = None,
    copies: int = 1,
    lease_seconds: float = LEASE_S,
) -> int:
    """Make an earlier version of a store in a cluster the current one again, and return it.

    Processes that serve switch to it within one look. The next load makes a version with a new
    number, and removes those that were rolled back from.

    Parameters
    ----------
    version
        One that is kept, a later one too; by default the one before the current.
    copies, lease_seconds
        As for :func:`bandana_kv.cluster.load`.

    Raises
    ------
    StoreNotFoundError
        The cluster has no store of that prefix.
    InputError
        The store does not keep that version.
    LoadInProgressError, LeaseLostError, DurabilityError, AdapterError
        As :func:`bandana_kv.cluster.load`.
    """
    place = place_of(address, prefix, user, password, tls)
    with _writing(place, lease_seconds, copies) as writer:
        kept, current = sweeping.whole_versions(writer.catalogue), writer.base.version
        wanted = version
        if wanted is None:
            wanted = max((each for each in kept if each < current), default=None)
        if wanted is None or wanted not in kept:
            what = "no version before the current one" if version is None else f"no {version}"
            raise InputError(
                f"{writer.catalogue.where}: keeps {what}; it has {', '.join(map(str, kept))}, "
                "and load(..., keep=) says how many stay"
            )
        writer.switch(wanted)
        return wanted


def sweep(
    address: str,
    *,
    keep: int = 2,
    prefix: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls = None,
    copies: int = 1,
    lease_seconds: float = LEASE_S,
) -> None:
    """Delete what no version of a store in a cluster needs: what each load does, without a load.

    For the space that a load which died has left behind, or processes that served old versions and
    have gone since. Blocks are deleted at a bounded rate.

    Parameters
    ----------
    keep
        How many versions stay, the current one included, beside those that are served.
    copies, lease_seconds
        As for :func:`bandana_kv.cluster.load`.

    Raises
    ------
    BandanaError
        As :func:`rollback`.
    """
    if not isinstance(keep, int) or keep < 1:
        raise InputError(f"keep {keep!r} is not a number of versions from 1 up")
    place = place_of(address, prefix, user, password, tls)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(_writing(place, lease_seconds, copies))
        adapter = stack.enter_context(adapter_on(place, 1, copies=copies))  # nothing is read
        sweeping.sweep(writer, adapter, writer.base.version, keep)


@contextlib.contextmanager
def _writing(place: Place, lease_s: float, copies: int) -> Iterator[Writer]:
    with contextlib.closing(catalogue_of(place)) as catalogue:
        _current(catalogue)
        with writer_of(catalogue, lease_s, copies) as writer:
            yield writer


def _current(catalogue: Catalogue) -> int:
    found = epochs.now(catalogue).version
    if not found:
        raise StoreNotFoundError(f"{catalogue.where} holds no store; make one with bandana_kv.load")
    return found
