"""Measuring on a machine that others use too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["preferred"]


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """Run before other programs, where that is allowed, as children and new threads then do too.

    A read that is done waits for a processor to notice, which on a busy machine takes far
    longer than the device did.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual)
