"""How much memory a worker's process had: its own, without what Ray's processes share."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from typing import Any

__all__ = ["Peak", "peak_of_process"]


def peak_of_process() -> int:
    """Return the most memory that this process had, resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Peak:
    """The most memory of its own that this process had in calls made by it.

    Pages of Ray's store count as resident in every process that touched them, for ever; they are
    left out, but for those of the call itself.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def during(self, call: Callable[..., Any], *given: Any) -> Any:
        """Return what a call returns."""
        shared = _status().get("RssShmem", 0)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # begins the peak anew
        try:
            return call(*given)
        finally:
            self.bytes = max(self.bytes, _status().get("VmHWM", 0) - shared)


def _status() -> dict[str, int]:
    """Return what the kernel says of this process's memory, in bytes; nothing where it does not."""
    found = {}
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                found[name] = int(value.split()[0]) * 1024
    return found
