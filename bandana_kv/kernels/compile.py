"""The one place that knows how kernels are compiled, cached and announced.

Kernels are numba functions over numpy arrays. They release the GIL, and their machine
code is kept beside the module, or in the user's cache directory when the installation
is read-only (numba chooses; ``NUMBA_CACHE_DIR`` overrides).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import caching, event

from bandana_kv.system.interrupts import without_interrupts

__all__ = [
    "brief",
    "copy_bytes",
    "foreign",
    "inlined",
    "kernel",
    "modules_of_kernels",
    "signed",
]

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parents[1]
_log = logging.getLogger("bandana_kv")


# What a module says of itself that holds numbers for kernels, and no kernel.
_MARKS = b"bandana_kv.kernels.compile import", b"# Constants of kernels."


def modules_of_kernels() -> list[Path]:
    """Return the package's modules that kernels are made of: with what they call and name."""
    modules = sorted(_PACKAGE.rglob("*.py"))
    return [path for path in modules if any(mark in path.read_bytes() for mark in _MARKS)]


def _package_stamp() -> tuple[float, int]:
    """Return the newest change and the total size of the modules that kernels are made of."""
    stats = [path.stat() for path in modules_of_kernels()]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


_STAMP = _package_stamp()


_IndexDataCacheFile: Any = caching.IndexDataCacheFile  # numba has no types


class _CacheFile(_IndexDataCacheFile):  # type: ignore[misc]
    """What is kept of a kernel; what another release has kept counts as nothing."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except (AttributeError, ImportError):
            # It names types by modules that have moved since, before its stamp can be read.
            return {}


def _stamp(cache: Any, function: Callable[..., Any]) -> None:
    """Tie a kernel's cached machine code to the state of its file and of all kernels."""
    # In a source checkout adapters lie outside of the package's directory.
    own = Path(function.__code__.co_filename).stat()
    cache._cache_file = _CacheFile(
        cache_path=cache._cache_path,
        filename_base=cache._impl.filename_base,
        source_stamp=(max(_STAMP[0], own.st_mtime), _STAMP[1] + own.st_size),
    )


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
    numba watches only the file a kernel is written in. Kernels call kernels of other
    files, so the cache is stamped with all of those: after an edit or an upgrade, nothing
    old is linked in.
    """
    return _compiled(function, {})


def brief(function: F) -> F:
    """Compile as :func:`kernel` does, but keep the GIL.

    For calls of a microsecond or two: giving the GIL away and waiting to have it back costs
    more than that, and with many threads much more.
    """
    return _compiled(function, {"nogil": False})


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
        cfunc: Any = numba.cfunc
        try:
            return cfunc(signature, cache=True, error_model="numpy")(function)
        except RuntimeError:  # numba finds no directory that it may write to
            _warn_uncached()
            return cfunc(signature, error_model="numpy")(function)

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
        _stamp(dispatcher._cache, function)
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
                "and takes up to a minute",
                extra={"event": "kernels_compiling"},
            )

    def on_end(self, event: Any) -> None:
        pass


_register: Any = event.register
_register("numba:compile", _Announce())
