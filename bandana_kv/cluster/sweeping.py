"""What no version needs any more is deleted, by the one who writes.

A load lists its number as a segment, and each key space under it, *before* it writes a block there:
what it leaves behind when it dies is found. A version is whole, and may be opened, while it is
listed as such. What stays: the versions up to the current one until there are `keep`, and those
that some process has a lease on, with all segments that their tables lie in. A version after the
current one was rolled back from, or its load died.

A writer that is woken after its lease was lost may still write blocks into a space that was deleted
meanwhile. So deleted spaces are listed for an hour more, and looked at again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bandana_kv.cluster import leases, records
from bandana_kv.errors import FormatError

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.resp_catalogue import Catalogue
    from bandana_kv.cluster.writing import Writer

__all__ = ["announce_space", "forget_segment", "list_segment", "sweep", "whole_versions"]

VERSIONS, SEGMENTS, SPACES, DELETED = "versions", "segments", "spaces", "deleted"
_LOOKED_AT_AGAIN_S = 3600


def whole_versions(catalogue: Catalogue) -> list[int]:
    """Return the versions that may be opened, rising."""
    return sorted(map(int, catalogue.members(VERSIONS)))


def list_segment(writer: Writer) -> None:
    """List what a writer is about to write."""
    writer.catalogue.add(SEGMENTS, writer.fence, writer.fence)


def announce_space(writer: Writer, segment: int) -> int:
    """Return a key space that was never used, and is listed under a segment.

    The copies have both before the first block is written there: no fail-over gives it out twice.
    """
    space = writer.catalogue.increment("space")
    writer.catalogue.add(SPACES, segment, space)
    writer.settle()
    return space


def sweep(writer: Writer, adapter: Adapter, current: int, keep: int) -> None:
    """Delete what no version needs.

    Parameters
    ----------
    writer
        Holds the lease; what it has listed itself stays.
    adapter
        Of the blocks.
    current
        The version that is served.
    keep
        How many versions stay, the current one included.

    Raises
    ------
    LeaseLostError
        Another writer has begun; nothing more is deleted.
    AdapterError
        The cluster fails; the next sweep goes on.
    """
    catalogue = writer.catalogue
    whole = whole_versions(catalogue)
    kept = {*[each for each in whole if each <= current][-keep:]}
    used = {writer.fence}
    for version in kept | {current} - {0}:
        used |= _record(catalogue, version).segments.keys()
    writer.check()
    dropped = {*whole} - kept - {writer.fence}
    if dropped:
        catalogue.remove(VERSIONS, *dropped)
        writer.settle()
    # Only now: whoever takes a lease looks at the list afterwards.
    for version in set().union(*leases.living(catalogue).values()) - kept:
        held = records.record_of(catalogue, version)
        used |= set() if held is None else held.segments.keys()
    for segment in sorted(map(int, catalogue.members(SEGMENTS))):
        if segment not in used:
            forget_segment(writer, adapter, segment)
    _look_again(writer, adapter)
    leases.forget_expired(catalogue, current)


def _record(catalogue: Catalogue, version: int) -> records.Record:
    found = records.record_of(catalogue, version)
    if found is None:
        raise FormatError(
            f"{catalogue.where}: version {version} is listed, and what it is made of is not there; "
            "nothing is deleted. Load into another prefix"
        )
    return found


def forget_segment(writer: Writer, adapter: Adapter, segment: int) -> None:
    """Delete all that a load wrote; raises as :func:`sweep`."""
    catalogue = writer.catalogue
    writer.check()
    catalogue.remove(VERSIONS, segment)
    for space in map(int, catalogue.members(SPACES, segment, segment)):
        writer.check()
        adapter.delete_space(space)
        catalogue.add(DELETED, int(time.time()), space)
        catalogue.remove(SPACES, space)
    records.drop_record(catalogue, segment)
    catalogue.remove(SEGMENTS, segment)


def _look_again(writer: Writer, adapter: Adapter) -> None:
    catalogue = writer.catalogue
    long_ago = int(time.time()) - _LOOKED_AT_AGAIN_S
    old = set(catalogue.members(DELETED, "-inf", long_ago))
    for space in catalogue.members(DELETED):
        if not adapter.space_is_empty(int(space)):
            writer.check()
            adapter.delete_space(int(space))
        elif space in old:
            catalogue.remove(DELETED, space)
