"""A read, as compiled code takes it: some words, see :data:`~.contract.Words`."""

from __future__ import annotations

__all__ = ["ADDRESS", "FOUND", "KEY", "READ_WORDS"]

# Constants of kernels.

KEY, ADDRESS, FOUND = range(3)
READ_WORDS = 4
