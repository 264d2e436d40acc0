"""Which directory a store was opened in, so that another one at its path is not taken for it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from bandana_kv.disk.manifest import Manifest, manifest_path, read_version
from bandana_kv.errors import FormatError, StoreChangedError
from bandana_kv.system.permission import check_permission

__all__ = ["Anchor"]


class Anchor:
    """A store's directory, held open: as long as it is, no other directory can be the same.

    A path and the number of a version do not tell a store: it may be deleted and loaded anew, a
    link may be flipped, a directory renamed, a backup restored over it.

    Parameters
    ----------
    root
        The store's path, absolute.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = os.fstat(handle)
        self._let_go = weakref.finalize(self, os.close, handle)

    def close(self) -> None:
        """Let go of the directory."""
        self._let_go()

    def check(self, served: Manifest, held: os.stat_result) -> None:
        """See that the path is still that of this store.

        Parameters
        ----------
        served
            A version of it.
        held
            Of that version's file, which is held open too, as it was when it was read.

        Raises
        ------
        StoreChangedError
            Something else is there, or nothing. Cost: two calls of ``stat``; where the file was
            touched since, it is read.
        """
        try:
            same = os.path.samestat(self._directory, self._root.stat()) and self._has(served, held)
        except (FileNotFoundError, NotADirectoryError):
            same = False
        except OSError as error:
            check_permission(error, self._root)
            raise
        if not same:
            raise StoreChangedError(
                f"{self._root}: the store that was opened here is not here any more (deleted, "
                "loaded anew, renamed, or a backup was put back); version "
                f"{served.version} of it goes on being served, and nothing is written. Close it "
                "and open the path again"
            )

    def _has(self, served: Manifest, held: os.stat_result) -> bool:
        """Return whether the version's file is the one held, and says what it said."""
        found = manifest_path(self._root, served.version).stat()
        if not os.path.samestat(held, found):
            return False
        # Written over in place, as cp does it, it would be the same file.
        return found.st_ctime_ns == held.st_ctime_ns or _says(self._root, served)


def _says(root: Path, served: Manifest) -> bool:
    try:
        return read_version(root, served.version) == served
    except FormatError:
        return False
