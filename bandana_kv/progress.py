"""Progress as a callback object, so that the library itself never prints."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Receives progress of long operations; this base class ignores it.

    A command line subclasses it to draw a bar. Calls come from one thread at a time.
    """

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units, for example ``("load user", 161291, "blocks")``."""

    def advance(self, count: int) -> None:
        """Report that `count` more units of the current stage are done."""

    def finish(self) -> None:
        """End the current stage."""
