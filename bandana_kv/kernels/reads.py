"""A read, as compiled code takes it: words, see :data:`bandana_kv.adapters.contract.Words`."""

from __future__ import annotations

__all__ = ["ADDRESS", "FOUND", "KEY", "READ_WORDS"]

# Constants of kernels.

KEY, ADDRESS, FOUND = range(3)
READ_WORDS = 4
