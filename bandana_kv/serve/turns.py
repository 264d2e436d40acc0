"""Many look while nobody changes; whoever changes is alone."""

from __future__ import annotations

import threading

__all__ = ["Turns"]


class Turns:
    """A lock that many threads may share, or one may have for itself.

    Who waits to be alone keeps newcomers out, so that lookups cannot starve admissions.
    Cost: about a microsecond each way.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._count = threading.Condition(threading.Lock())
        self._inside = 0

    def enter(self) -> None:
        """Begin to be inside together with other sharers."""
        with self._door, self._count:
            self._inside += 1

    def leave(self) -> None:
        """End it."""
        with self._count:
            self._inside -= 1
            if not self._inside:
                self._count.notify()

    def take(self) -> None:
        """Begin to be alone."""
        self._door.acquire()
        try:
            with self._count:
                while self._inside:
                    self._count.wait()
        except BaseException:
            self._door.release()
            raise

    def give_back(self) -> None:
        """End being alone; any thread may."""
        self._door.release()
