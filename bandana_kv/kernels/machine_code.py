"""Where compiled kernels are kept, and when what is kept counts.

numba keeps machine code beside the module, watches only the file that a kernel is written in, and
trusts that nobody else writes. Here it is tied to all files that kernels are made of, and
processes that compile at the same time, or are killed meanwhile, never leave one kernel's code
under the name of another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from numba.core import caching

__all__ = ["keep", "modules_of_kernels"]

_PACKAGE = Path(__file__).resolve().parents[1]
# How kernels are compiled; what a module of them imports; what one says that has only numbers.
_MARKS = b"def kernel(", b"bandana_kv.kernels.compile import", b"# Constants of kernels."

_IndexDataCacheFile: Any = caching.IndexDataCacheFile  # numba has no types


def modules_of_kernels() -> list[Path]:
    """Return the package's modules that kernels are made of: with what they call and name."""
    modules = sorted(_PACKAGE.rglob("*.py"))
    return [path for path in modules if any(mark in path.read_bytes() for mark in _MARKS)]


def _package_stamp() -> tuple[float, int]:
    """Return the newest change and the total size of the modules that kernels are made of."""
    stats = [path.stat() for path in modules_of_kernels()]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


_STAMP = _package_stamp()


def keep(cache: Any, function: Callable[..., Any]) -> None:
    """Tie the kept machine code of a kernel to the state of its file and of all kernels.

    Parameters
    ----------
    cache
        What numba has made for `function`.
    """
    # In a source checkout adapters lie outside of the package's directory.
    own = Path(function.__code__.co_filename).stat()
    cache._cache_file = _CacheFile(
        cache_path=cache._cache_path,
        filename_base=cache._impl.filename_base,
        source_stamp=(max(_STAMP[0], own.st_mtime), _STAMP[1] + own.st_size),
    )


class _CacheFile(_IndexDataCacheFile):  # type: ignore[misc]
    """The index of a kernel's machine code, by the types of its arguments, and files with it."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except (AttributeError, ImportError):
            # Another release's, which names types by modules that have moved since: before its
            # stamp can be read. It counts as nothing.
            return {}

    def save(self, key: Any, data: Any) -> None:
        """Keep machine code for arguments of types `key`."""
        with _alone_in(self._cache_path):
            names = self._load_index()
            if key not in names:
                free = (self._data_name(number) for number in count(1))
                names[key] = next(name for name in free if name not in names.values())
                # Another release's, or of a process that was killed at the next line but one:
                # it would be taken for this one's.
                Path(self._data_path(names[key])).unlink(missing_ok=True)
                self._save_index(names)
            self._save_data(names[key], data)


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Keep other processes from writing; where the file system has no locks, they may."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
