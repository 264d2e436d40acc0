"""What the library logs about faults that somebody makes on purpose is not shown."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["hushed"]


@contextlib.contextmanager
def hushed(below: int = logging.CRITICAL) -> Iterator[None]:
    """Let the library log nothing below a level, until this is left."""
    log = logging.getLogger("bandana_kv")
    level = log.level
    log.setLevel(below)
    try:
        yield
    finally:
        log.setLevel(level)
