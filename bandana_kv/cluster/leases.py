"""Leases of those who serve: while one has not run out, nothing of its version is deleted.

A sorted set, of which a member is a version and a process, and the score says when its lease runs
out, in milliseconds since 1970 by the clock of that process; each process renews its own members
three times in that time. Whoever deletes goes by its own clock. So the clocks of all machines may
differ by half a lease (15 s of 30); a process whose clock is slower than that, or which was
paused for longer than its lease, may find blocks of an old version gone. That is an error that
names the block, never a wrong row, and lasts until the process looks which version is current.

Whoever takes a lease looks afterwards whether the version is still listed as whole; whoever
deletes takes it off that list first, and looks afterwards who has a lease. All of it lies on one
node, in one order, so that one of the two sees the other.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["forget_expired", "give_back", "living", "member_id", "ready", "report_ready", "take"]

_READERS, _READY = "readers", "ready"
# What ran out is kept on the list for so long, for whoever asks the cluster who was there.
_REMEMBERED_MS = 600_000


def member_id() -> str:
    """Return what names this process in a cluster: host, process id and a random number."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


def take(catalogue: Catalogue, version: int, who: str, seconds: float) -> None:
    """Take a lease on a version, or renew it."""
    catalogue.add(_READERS, _now_ms() + int(seconds * 1000), f"{version}:{who}")


def give_back(catalogue: Catalogue, version: int, who: str) -> None:
    """End a lease."""
    catalogue.remove(_READERS, f"{version}:{who}")
    catalogue.remove(_READY, f"{version}:{who}")


def report_ready(catalogue: Catalogue, version: int, who: str) -> None:
    """Say that a version is open in a process, and warm."""
    catalogue.add(_READY, version, f"{version}:{who}")


def living(catalogue: Catalogue) -> dict[str, set[int]]:
    """Return the processes whose leases have not run out, with the versions that they have."""
    found: dict[str, set[int]] = {}
    for member in catalogue.members(_READERS, f"({_now_ms()}"):
        version, _, who = member.partition(":")
        found.setdefault(who, set()).add(int(version))
    return found


def ready(catalogue: Catalogue, version: int) -> set[str]:
    """Return the processes that have reported a version ready."""
    members = catalogue.members(_READY, version, version)
    return {member.partition(":")[2] for member in members}


def forget_expired(catalogue: Catalogue, current: int) -> None:
    """Take off the lists what ran out long ago, and who was ready for what is over."""
    gone = catalogue.members(_READERS, "-inf", _now_ms() - _REMEMBERED_MS)
    catalogue.remove(_READERS, *gone)
    catalogue.remove(_READY, *catalogue.members(_READY, "-inf", f"({current}"))


def _now_ms() -> int:
    return int(time.time() * 1000)
