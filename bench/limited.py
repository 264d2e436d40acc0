"""A memory cgroup for one process, which limits the page cache it gets the use of."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

__all__ = ["Group"]

_ROOT = Path("/sys/fs/cgroup")
_TRIES = 50
_FOLLOW_SECONDS = 0.02


class Group:
    """A memory cgroup of version 2 or 1, empty until a process enters it.

    Memory that a process took before it entered stays with the group it was in; what it takes
    from then on, and the pages of files that it is first to read, count here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._second = (path / "memory.high").exists()
        self.kind = f"cgroup {'v2 memory.high' if self._second else 'v1 memory.limit_in_bytes'}"
        self._limit = path / ("memory.high" if self._second else "memory.limit_in_bytes")
        self.most_own_bytes = self.most_page_bytes = 0

    @classmethod
    def create(cls, name: str) -> Group | None:
        """Make one, or return None where this machine or this user may not."""
        for root in (_ROOT, _ROOT / "unified", _ROOT / "memory"):
            control = root / "cgroup.subtree_control"
            with contextlib.suppress(OSError):
                if control.exists():
                    possible = "memory" in control.read_text().split()
                else:
                    possible = (root / "memory.limit_in_bytes").exists()
                if possible:
                    (root / name).mkdir()
                    # A process at the limit waits until it is raised, and is not killed.
                    with contextlib.suppress(OSError):
                        (root / name / "memory.oom_control").write_text("1")
                    return cls(root / name)
        return None

    def enter(self) -> None:
        """Move this process, all its threads, into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def follow(self, page_bytes: int, done: threading.Event) -> None:
        """Until `done`, leave `page_bytes` for pages of files beside what processes hold."""
        while not done.wait(_FOLLOW_SECONDS):
            stat = self._stat("memory.stat")
            if self._second:
                own, pages = stat["anon"] + stat["kernel"], stat["file"]
            else:
                kernel = int((self.path / "memory.kmem.usage_in_bytes").read_text())
                own, pages = stat["rss"] + kernel, stat["cache"]
            # Version 1 refuses while it cannot let go of enough.
            with contextlib.suppress(OSError):
                self._limit.write_text(str(own + page_bytes))
                self.most_page_bytes = max(self.most_page_bytes, pages)
            self.most_own_bytes = max(self.most_own_bytes, own)

    def _stat(self, name: str) -> dict[str, int]:
        lines = (self.path / name).read_text().splitlines()
        return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}

    def remove(self) -> None:
        """Remove it once its process has ended."""
        for _ in range(_TRIES):
            try:
                self.path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)
