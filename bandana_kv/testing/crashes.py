"""What a power cut may leave of a directory, by what was written into it and what was synced.

A :class:`Trace` looks at the directory before and after each call that may change it, whoever
wrote: what differs was written, past the page cache or by compiled code too. It notes what each
``fsync`` and ``fdatasync`` was of, and leaves the device itself alone. The model is stricter than
file systems are:

- A file is what it was at its own last sync. What was written since may be there or not, sector by
  sector, and so may its new length, whatever the order was.
- A name is there once its directory was synced. Of names made, renamed and removed since, any may
  be as they were; a rename happens wholly or not.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np

__all__ = ["CUTS", "Cut", "Disk", "Image", "Point", "Trace", "image_of", "write_image"]

_ROOT = 0
_SECTORS = (512, 4096)
_CHANGING = (
    *("write", "pwrite", "ftruncate", "posix_fallocate"),
    *("rename", "replace", "unlink", "remove", "mkdir", "rmdir"),
)
_SYNCING = ("fsync", "fdatasync")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_plain_open = io.open

Names: TypeAlias = "Mapping[str, int]"
Image: TypeAlias = "dict[str, bytes | None]"
"""What lies at each path: bytes of a file, None for a directory. Those above come first."""


@dataclass(frozen=True)
class File:
    """A file: what it held at its last sync, and after each writing since."""

    contents: tuple[bytes, ...] = (b"",)

    @property
    def synced(self) -> File:
        """The same, once it was synced."""
        return File(self.contents[-1:])


@dataclass(frozen=True)
class Folder:
    """A directory: its names at its last sync, and each change since; None: the name went."""

    safe: Names = field(default_factory=dict)
    changes: tuple[Mapping[str, int | None], ...] = ()

    def names(self, kept: Callable[[], bool] = lambda: True) -> dict[str, int]:
        """Return the names there are if of the changes only some happened."""
        found: dict[str, int | None] = dict(self.safe)
        for change in self.changes:
            if kept():
                found |= change
        return {name: number for name, number in found.items() if number is not None}

    @property
    def synced(self) -> Folder:
        """The same, once it was synced."""
        return Folder(self.names())


Disk: TypeAlias = "Mapping[int, File | Folder]"
"""Files and directories by a number of ours; that of the outermost is 0."""


@dataclass(frozen=True)
class Point:
    """A moment of a trace: the disk, and how many states were acknowledged before."""

    acknowledged: int
    disk: Disk


class Trace:
    """Sees what is written below a directory, and what of it is synced.

    Parameters
    ----------
    root
        The directory. What lies there is taken for synced.
    syncs_itself
        Says of a path whether it is an engine's that writes without Python: what is seen there is
        taken for synced.
    ignores
        Says of a path whether it is no part of the state.
    killed_at
        The point of another trace at which its process was killed, and `root` is what the system
        shows then: all that was written. What was not synced then is so still.
    """

    def __init__(
        self,
        root: Path,
        syncs_itself: Callable[[str], bool] = lambda _: False,
        ignores: Callable[[str], bool] = lambda _: False,
        killed_at: Point | None = None,
    ) -> None:
        self._root, self._syncs_itself, self._ignores = root, syncs_itself, ignores
        self._lock = threading.RLock()
        self._disk: dict[int, File | Folder] = {}
        self._numbers: dict[int, int] = {}  # of what is there now, by inode
        self._device = root.stat().st_dev
        self._count = 0
        self._acknowledged = 0
        self.points: list[Point] = []
        """All moments at which something had changed, in their order."""
        if killed_at is None:
            self._look()
            self._disk = {number: each.synced for number, each in self._disk.items()}
            self.points.clear()
        else:
            self._disk = dict(killed_at.disk)
            self._count = 1 + max(self._disk)
            self._know(root, _ROOT)
        self._note()

    def _know(self, path: Path, number: int) -> None:
        """Note which file of the disk lies at a path, and those below."""
        node = self._disk[number]
        self._numbers[path.stat().st_ino] = number
        if isinstance(node, Folder):
            for name, inner in node.names().items():
                self._know(path / name, inner)

    def acknowledge(self) -> None:
        """Note that a call has returned: what it did must be there from now on."""
        self._look()
        self._acknowledged += 1
        self._note()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch the calls of this process, of all threads."""
        with contextlib.ExitStack() as stack:
            for name in _CHANGING:
                self._replace(stack, os, name, self._changing)
            for name in _SYNCING:
                self._replace(stack, os, name, self._syncing)
            for module in (os, builtins, io):
                self._replace(stack, module, "open", self._opening)
            yield

    def _replace(self, stack: contextlib.ExitStack, module: Any, name: str, by: Any) -> None:
        stack.enter_context(mock.patch.object(module, name, by(getattr(module, name))))

    def _changing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            with self._lock:
                try:
                    return call(*args, **options)
                finally:
                    self._look()

        return watched

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        changing = self._changing(call)

        def opened(path: Any, mode: int | str = "r", *args: Any, **options: Any) -> Any:
            writes = mode & _WRITING if isinstance(mode, int) else set(mode) & set("wax+")
            if not writes:
                return call(path, mode, *args, **options)
            self._look()  # a new file may get the inode of one that an engine has removed
            return changing(path, mode, *args, **options)

        return opened

    def _syncing(self, _: Callable[[int], None]) -> Callable[[int], None]:
        def noted(handle: int) -> None:
            with self._lock:
                self._look()
                found = os.fstat(handle)
                number = self._numbers.get(found.st_ino)
                if number is not None and found.st_dev == self._device:
                    self._disk[number] = self._disk[number].synced
                    self._note()

        return noted

    def _note(self) -> None:
        self.points.append(Point(self._acknowledged, dict(self._disk)))

    def _look(self) -> None:
        with self._lock:
            before, seen = dict(self._disk), dict[int, int]()
            self._look_at(str(self._root), self._root.stat().st_ino, True, seen)
            self._numbers = seen
            if before != self._disk:
                self._note()

    def _look_at(self, path: str, inode: int, is_folder: bool, seen: dict[int, int]) -> int:
        """Note what is new at a path; return its number."""
        number = self._numbers.get(inode)
        if number is None:
            number, self._count = self._count, self._count + 1
        seen[inode] = number
        new: File | Folder
        if is_folder:
            new = self._folder_now(path, self._disk.get(number, Folder()), seen)
        else:
            new = _file_now(path, self._disk.get(number, File()))
        self._disk[number] = new.synced if self._syncs_itself(path) else new
        return number

    def _folder_now(self, path: str, before: Any, seen: dict[int, int]) -> Folder:
        now: dict[str, int] = {}
        with os.scandir(path) as entries:
            for each in sorted(entries, key=lambda entry: entry.name):
                # Threads of an engine may remove what was just listed.
                with contextlib.suppress(FileNotFoundError):
                    if not self._ignores(each.path):
                        now[each.name] = self._look_at(each.path, each.inode(), each.is_dir(), seen)
        old = before.names()
        if old == now:
            return before  # type: ignore[no-any-return]
        # One call was made since: what differs in one directory happened at once.
        names = sorted(old.keys() | now.keys())
        change = {name: now.get(name) for name in names if old.get(name) != now.get(name)}
        return Folder(before.safe, (*before.changes, change))


def _file_now(path: str, before: Any) -> File:
    with _plain_open(path, "rb", buffering=0) as file:
        content = file.read()
    return before if content == before.contents[-1] else File((*before.contents, content))


@dataclass(frozen=True)
class Cut:
    """How likely a change that was not synced is there: of names, and of what files hold.

    With a share of neither 0 nor 1, a file is as it was at one time, or torn: each sector, and
    the length, is of a time of its own.
    """

    names: float
    contents: float


CUTS = (
    *(Cut(names, contents) for names in (0, 1) for contents in (0, 1)),
    *(Cut(1, 0.5), Cut(0.5, 1), Cut(0.5, 0.5), Cut(0.5, 0.5)),
)


def image_of(disk: Disk, cut: Cut, seed: tuple[int, ...]) -> Image:
    """Return one of the things that a power cut may leave of a disk."""
    image: Image = {}

    def add(number: int, path: str) -> None:
        node = disk[number]
        if isinstance(node, File):
            image[path] = _left_of(node, cut.contents, (*seed, number))
            return
        image[path] = None
        for name, inner in sorted(_names_of(node, cut.names, (*seed, number)).items()):
            add(inner, f"{path}/{name}")

    add(_ROOT, ".")
    return image


# By the file, so that one more writing elsewhere changes nothing here.
def _names_of(folder: Folder, share: float, seed: tuple[int, ...]) -> dict[str, int]:
    if share in (0, 1) or not folder.changes:
        return folder.names(lambda: share == 1)
    rng = np.random.default_rng(seed)
    return folder.names(lambda: rng.random() < share)


def _left_of(file: File, share: float, seed: tuple[int, ...]) -> bytes:
    contents = file.contents
    if share in (0, 1) or len(contents) == 1:
        return contents[-1 if share else 0]
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        return contents[rng.integers(len(contents))]
    return _torn(contents, int(rng.choice(_SECTORS)), rng)


def _torn(contents: tuple[bytes, ...], sector: int, rng: np.random.Generator) -> bytes:
    length = len(contents[rng.integers(len(contents))])
    parts = []
    for at in range(0, length, sector):
        part = contents[rng.integers(len(contents))][at : at + sector]
        parts.append(part.ljust(sector, b"\0"))  # what was never written reads as zeros
    return b"".join(parts)[:length]


def write_image(image: Image, root: Path) -> None:
    """Make a directory what an image says, in place of what is there."""
    shutil.rmtree(root, ignore_errors=True)
    for name, content in image.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(content)
