"""A text file's bytes in blocks, plain or gzip, for kernels to parse."""

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

__all__ = ["Blocks"]

BLOCK_BYTES = 4 << 20
_NEWLINE = b"\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Blocks:
    """Hands a file's bytes to a parser; what it leaves over begins the next block.

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
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
        self._file: IO[bytes] = self._raw
        if path.name.lower().endswith(".gz"):
            self._file = gzip.GzipFile(fileobj=self._raw)  # type: ignore[assignment]
        self._reported = 0
        self._left = b""
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

    def first_line(self) -> str:
        """Take the first line off the file, without its end."""
        while _NEWLINE not in self._left:
            more = self._read(BLOCK_BYTES)
            self._left += more
            if not more:
                break
        line, _, self._left = self._left.partition(_NEWLINE)
        try:
            return line.removeprefix(_BYTE_ORDER_MARK).removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: line 1 is not UTF-8 text ({error.reason})") from error

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
        if not self._left:
            self._left = self._read(max(want, len(_BYTE_ORDER_MARK))).removeprefix(_BYTE_ORDER_MARK)
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
        try:
            data = self._file.read(size)
            at = self._raw.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._path}: damaged gzip ({error}); copy it again") from error
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror})") from error
        self._progress.advance(at - self._reported)
        self._reported = at
        return data
