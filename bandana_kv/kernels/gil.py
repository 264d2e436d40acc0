"""Giving the GIL away in the middle of compiled code: for kernels that hold it when called.

What is between the two calls must not touch Python, nor raise.
"""

from __future__ import annotations

from typing import Any

import numba

from bandana_kv.kernels.compile import inlined

__all__ = ["give_gil_away", "take_gil_back"]

types: Any = numba.types
_save_thread: Any = types.ExternalFunction("PyEval_SaveThread", types.intp())
_restore_thread: Any = types.ExternalFunction("PyEval_RestoreThread", types.void(types.intp))


@inlined
def give_gil_away() -> int:
    """Let other threads of Python run; return what :func:`take_gil_back` is to be given."""
    held: int = _save_thread()
    return held


@inlined
def take_gil_back(held: int) -> None:
    """Wait for the GIL, and have it again."""
    _restore_thread(held)
