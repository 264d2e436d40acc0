"""A text file's bytes in blocks, plain or gzip, for kernels to parse; lines end in a newline."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.progress import Progress
from bandana_kv.system.permission import check_permission

__all__ = ["Blocks"]

BLOCK_BYTES = 4 << 20
_MOST_LINE_BYTES = 64 << 20  # of a first line
_NEWLINE = b"\n"
_RETURN = b"\r"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Blocks:
    r"""Hands a file's bytes to a parser; what it leaves over begins the next block.

    A byte order mark at the beginning is left out, and line ends ``\r\n`` and ``\r`` come as
    ``\n``: a file whose lines end in ``\r`` would else be one line.

    Parameters
    ----------
    path
        A file; one whose name ends in .gz is decompressed on the way.
    progress
        Told of the bytes of the file, as they lie on disk.

    Raises
    ------
    InputError
        The file cannot be opened or read, is empty, or is not valid gzip.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        try:
            self._raw = open(path, "rb")  # noqa: SIM115 - closed by __exit__
            size = path.stat().st_size
        except OSError as error:
            check_permission(error, path)
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
        self._file: IO[bytes] = self._raw
        if path.name.lower().endswith(".gz"):
            self._file = gzip.GzipFile(fileobj=self._raw)  # type: ignore[assignment]
        self._reported = 0
        self._left = b""
        self._held = b""  # a carriage return whose newline may come with the next bytes
        self._begun = False
        progress.start(f"read {path.name}", size, "bytes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raw.close()
        self._progress.finish()

    def line(self) -> bytes:
        """Take the next line off the file, its end included; nothing at the end of the file.

        Raises
        ------
        InputError
            It is so long that this is no text; or as for the class.
        """
        parts, size = [self._left], len(self._left)
        while _NEWLINE not in parts[-1]:
            more = self._read(BLOCK_BYTES)
            if not more:
                break
            parts.append(more)
            size += len(more)
            if size > _MOST_LINE_BYTES:
                raise InputError(f"{self._path}: its first line never ends; is it text?")
        line, end, self._left = b"".join(parts).partition(_NEWLINE)
        return line + end

    def put_back(self, text: bytes) -> None:
        """Let what was taken off come again."""
        self._left = text + self._left

    def feed(self, parse: Callable[[NDArray[np.uint8]], int]) -> NDArray[np.uint8]:
        """Hand the file to `parse` block by block; each ends where the parser stopped.

        Parameters
        ----------
        parse
            Takes a block, uint8 (n,), and returns how many of its bytes it is done with:
            all complete lines. The last line of the file is given an end if it has none.

        Returns
        -------
        ndarray
            uint8; what the parser left over of the last block.
        """
        want = BLOCK_BYTES
        while True:
            more = self._read(want)
            text = self._left + more
            if not more and text and not text.endswith(_NEWLINE):
                text += _NEWLINE
            block = np.frombuffer(text, np.uint8)
            used = parse(block) if text else 0
            self._left = text[used:]
            if not more:
                return block[used:]
            # A line longer than the block: read ever more, or it is scanned ever again.
            want = BLOCK_BYTES if used else 2 * want

    def _read(self, size: int) -> bytes:
        """Return the next bytes with their line ends as newlines; none at the end of the file."""
        if not self._begun:
            self._begun = True
            self._held = self._read_raw(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
        while True:
            more = self._read_raw(size)
            data = self._held + more
            self._held = b""
            if more and data.endswith(_RETURN):
                data, self._held = data[:-1], _RETURN
            if _RETURN in data:
                data = data.replace(b"\r\n", _NEWLINE).replace(_RETURN, _NEWLINE)
            if data or not more:
                return data

    def _read_raw(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
            at = self._raw.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._path}: damaged gzip ({error}); copy it again") from error
        except OSError as error:
            check_permission(error, self._path)
            raise InputError(f"{self._path}: cannot be read ({error.strerror})") from error
        self._progress.advance(at - self._reported)
        self._reported = at
        return data
