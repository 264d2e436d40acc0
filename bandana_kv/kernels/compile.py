"""The one place that knows how kernels are compiled and announced.

Kernels are numba functions over numpy arrays. They release the GIL, and their machine
code is kept (:mod:`bandana_kv.kernels.machine_code`) beside the module, or in the user's cache
directory when the installation is read-only (numba chooses; ``NUMBA_CACHE_DIR`` overrides).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import event
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from bandana_kv.kernels.machine_code import keep
from bandana_kv.system.interrupts import without_interrupts

__all__ = ["brief", "copy_bytes", "entry", "foreign", "inlined", "kernel", "signed"]

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("bandana_kv")


@functools.cache
def _warn_uncached() -> None:
    """Say once that every process will compile."""
    _log.warning(
        "no directory to keep compiled kernels in: every process compiles them anew; "
        "set NUMBA_CACHE_DIR to one that is writable",
        extra={"event": "kernels_uncached"},
    )


def kernel(function: F) -> F:
    """Compile `function` on first call, without the GIL, and cache the machine code.

    Parameters
    ----------
    function
        A function over numpy arrays and scalars that numba can compile.

    Returns
    -------
    callable
        The dispatcher, typed as the function it stands for.

    Notes
    -----
    After an edit or an upgrade nothing old is linked in: see
    :mod:`bandana_kv.kernels.machine_code`.
    """
    return _compiled(function, {})


def brief(function: F) -> F:
    """Compile as :func:`kernel` does, but keep the GIL.

    For calls of a microsecond or two: giving the GIL away and waiting to have it back costs
    more than that, and with many threads much more.
    """
    return _compiled(function, {"nogil": False})


def entry(function: Callable[..., Any], signature: tuple[Any, ...]) -> Callable[..., Any]:
    """Return compiled code of one signature, to be called without a look at the arguments.

    What numba does to find the signature of a call takes 150 ns, a tenth of a small lookup.
    Whoever calls this must give arguments of exactly these types: nothing else is checked.
    """
    dispatcher: Any = function
    dispatcher.compile(signature)
    found: Callable[..., Any] = dispatcher.overloads[signature].entry_point
    return found


def foreign(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function so that other compiled code can call it by its address.

    Parameters
    ----------
    signature
        Of numba's types.

    Returns
    -------
    callable
        A decorator; what it returns has the ``address``. It must not raise.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        normalized: Any = normalize_signature
        options = {"error_model": "numpy"}
        made: Any = CFunc(function, normalized(signature), locals={}, options=options)
        try:
            made.enable_caching()
        except RuntimeError:  # numba finds no directory that it may write to
            _warn_uncached()
        else:
            keep(made._cache, function)
        made.compile()
        return made

    return decorate


def inlined(function: F) -> F:
    """Compile as :func:`kernel` does, into its callers.

    For what is small, called for every row, and allocates nothing: numba counts references
    to every array that a function touches, atomically, which costs ten times the work of
    a cache's bookkeeping. Here the caller's references are relied on, and none counted.
    """
    return _compiled(function, {"forceinline": True, "_nrt": False})


def _compiled(function: F, options: dict[str, bool]) -> F:
    options = {"nogil": True, **options}
    njit: Any = numba.njit  # its types do not know `_nrt`
    try:
        dispatcher: Any = njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # numba finds no directory that it may write to
        _warn_uncached()
        dispatcher = njit(error_model="numpy", **options)(function)
    else:
        keep(dispatcher._cache, function)
    dispatcher.compile = _uninterrupted(dispatcher.compile)
    typed: F = dispatcher
    return typed


def _uninterrupted(compile: F) -> F:
    """Hold Ctrl-C back while machine code is compiled, or loaded at a kernel's first call.

    An exception in the midst of that can end the process, or come out as another.
    """

    @functools.wraps(compile)
    def held(*given: Any, **named: Any) -> Any:
        with without_interrupts():
            return compile(*given, **named)

    return held  # type: ignore[return-value]


@inlined
def signed(value: Any) -> int:
    """Return an integer as int64: numba makes float64 of int64 mixed with uint64."""
    return np.int64(value)  # type: ignore[return-value]


# The C library's: several times as fast as a loop, which would look out for overlaps.
_memcpy: Any = numba.types.ExternalFunction(
    "memcpy", numba.types.voidptr(numba.types.uint64, numba.types.uint64, numba.types.uint64)
)


@inlined
def copy_bytes(
    source: np.ndarray, first: int, target: np.ndarray, target_first: int, count: int
) -> None:
    """Copy `count` bytes between C-contiguous arrays of bytes; offsets count from their start."""
    _memcpy(target.ctypes.data + target_first, source.ctypes.data + first, count)


class _Announce(event.Listener):
    """Says once per process that kernels are being compiled."""

    def __init__(self) -> None:
        self.announced = False

    def on_start(self, event: Any) -> None:
        if self.announced:
            return
        dispatcher = event.data.get("dispatcher")
        module = getattr(getattr(dispatcher, "py_func", None), "__module__", "")
        if module.startswith("bandana_kv"):
            self.announced = True
            _log.warning(
                "compiling kernels; this happens once per machine and release, "
                "and takes a few minutes",
                extra={"event": "kernels_compiling"},
            )

    def on_end(self, event: Any) -> None:
        pass


_register: Any = event.register
_register("numba:compile", _Announce())
