"""An index of keys that lies in a file, mapped: what it was built of, asked and read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import FormatError, IdError, InputError
from bandana_kv.kernels.compile import kernel, signed
from bandana_kv.keys.arguments import checked_keys
from bandana_kv.keys.file import HEADER_BYTES, Header, read_header
from bandana_kv.keys.kinds import Kind, words_of_kind
from bandana_kv.keys.lookup import FEW, ids_of_few, ids_of_many, words_of_index
from bandana_kv.keys.slots import EMPTY, HALVES, first_of, rank_at, second_at
from bandana_kv.system.maps import map_file
from bandana_kv.system.permission import check_permission

__all__ = ["KeyIndex"]

_CHUNK_BYTES = 1 << 22
_WORD = np.dtype(np.uint64)
_EMPTY = np.int64(EMPTY)


class KeyIndex:
    """Which id each key has; opened by :meth:`open`, built by :func:`bandana_kv.keys.build_index`.

    Threads may share it. The file stays mapped as long as the object lives, and is read as it is
    asked: its pages are the system's page cache, which all processes share.

    Attributes
    ----------
    kind : str
        Of the keys: ``int64``, ``uint64``, ``str`` or ``bytes``.
    keys : int
        How many there are; ids are 0 to keys - 1.
    absent : int or None
        For int64, a word that is the one of no key; else None.
    bytes_on_disk : int
        Of the file.
    """

    def __init__(self, path: Path, header: Header, mapped: NDArray[np.uint8]) -> None:
        self._path, self._header = path, header
        self.kind: Kind = header.kind
        self.keys = header.keys
        self.absent = header.absent if header.kind == "int64" else None
        self.bytes_on_disk = mapped.size
        self._width = words_of_kind(header.kind)
        self._slots: NDArray[np.uint32] = mapped[HEADER_BYTES:].view(np.uint32)
        self._index = words_of_index(
            self._slots, self._width, header.homes, header.keys, header.seed
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map the index in a file.

        Raises
        ------
        FormatError
            The file is missing, torn, of another length than it says, of a newer format, or its
            header is damaged. What its slots hold is not looked at: see :meth:`verify`.
        NoPermissionError
            It may not be read.

        Notes
        -----
        Cost: some 50 us, whatever the size.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                header = read_header(path, file.fileno())
                mapped = map_file(file.fileno(), HEADER_BYTES + header.data_bytes)
        except OSError as error:
            raise _unreadable(path, error) from error
        return cls(path, header, mapped)

    def __repr__(self) -> str:
        return f"<KeyIndex of {self.keys} keys, {self.kind}, at {str(self._path)!r}>"

    def __len__(self) -> int:
        return self.keys

    def words_of(self, table: str, keys: Any) -> NDArray[np.uint64]:
        """Return the words to look keys up by here: :func:`bandana_kv.keys.checked_keys`."""
        return checked_keys(table, keys, self.kind, self.absent)

    def ids_of(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the id of each key, int64 (n,), and -1 where there is none.

        Parameters
        ----------
        words
            uint64 (n,) where keys are integers, (n, 2) where they are text or bytes, as
            :meth:`words_of` makes them.

        Raises
        ------
        InputError
            They have another shape or dtype.
        FormatError
            The file turned out to be damaged.

        Notes
        -----
        Cost: under a microsecond, and 5 to 20 ns a key if the file is in memory. Of more than 100
        keys the GIL is given away.
        """
        if words.dtype != _WORD or words.shape[1:] != ((2,) if self._width == 2 else ()):
            raise InputError(
                f"{self._path}: words of {self.kind} keys are uint64 "
                f"{'(n, 2)' if self._width == 2 else '(n,)'}, not {words.dtype} {words.shape}"
            )
        ids = np.empty(len(words), np.int64)
        ask = ids_of_few if ids.size <= FEW else ids_of_many
        if self._width == 2 or not words.flags.c_contiguous:
            words = np.ascontiguousarray(words).reshape(-1)
        if ask(self._index, words, ids):
            raise self._damaged()
        return ids

    def keys_in_order(self) -> NDArray[np.int64] | NDArray[np.uint64]:
        """Return all keys in the order of their ids: int64 or uint64 (keys,), as the kind is.

        Of text and bytes the 128 bits that they are looked up by, uint64 (keys, 2): the index has
        nothing else of them.

        Raises
        ------
        FormatError
            The file is damaged.

        Notes
        -----
        Cost: reads the file once, some 10 ns a key; 8 or 16 bytes of memory a key.
        """
        words = np.empty(self._width * self.keys, np.uint64)
        seed = np.uint64(self._header.seed)
        if not _put_in_order(self._slots, HALVES[self._width], seed, self.keys, words):
            raise self._damaged()
        if self._width == 2:
            return words.reshape(-1, 2)
        return words.view(np.int64) if self.kind == "int64" else words

    def key_at(self, ids: ArrayLike) -> NDArray[np.int64] | NDArray[np.uint64]:
        """Return the key of each id, (n,) or (n, 2), as :meth:`keys_in_order` has them.

        Raises
        ------
        IdError
            An id is no integer, or out of range.
        FormatError
            The file is damaged.

        Notes
        -----
        Cost: that of all keys, whatever the number of ids. For export and inspection.
        """
        wanted = np.asarray(ids)
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.dtype.kind not in "iu":
            raise IdError(f"{self._path}: ids must be integers, not {wanted.dtype}")
        wrong = wanted[(wanted < 0) | (wanted >= self.keys)]
        if wrong.size:
            raise IdError(
                f"{self._path}: id {int(wrong.flat[0])} is out of range; there are {self.keys} keys"
            )
        keys: NDArray[np.int64] | NDArray[np.uint64] = self.keys_in_order()[wanted]
        return keys

    def verify(self) -> None:
        """Read the whole file, and see that it is as it was written.

        Raises
        ------
        FormatError
            It is not, cannot be read, or is another than was opened.
        NoPermissionError
            It may not be read.

        Notes
        -----
        Cost: the reading of the file, through a buffer of 4 MiB; it is in the page cache then.
        """
        digest = xxhash.xxh3_64()
        try:
            with self._path.open("rb") as file:
                if read_header(self._path, file.fileno()) != self._header:
                    raise FormatError(f"{self._path}: is another than was opened; open it anew")
                file.seek(HEADER_BYTES)
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if digest.intdigest() != self._header.checksum:
            raise self._damaged()

    def _damaged(self) -> FormatError:
        return FormatError(f"{self._path}: its slots are damaged; load the table again")


def _unreadable(path: Path, error: OSError) -> FormatError:
    check_permission(error, path)
    return FormatError(f"{path}: cannot be read ({error.strerror}); load the table again")


@kernel
def _put_in_order(
    slots: np.ndarray, halves: int, seed: np.uint64, keys: int, words: np.ndarray
) -> bool:
    """Put each key's words where its id says; return whether there is one for each id."""
    wide = halves == HALVES[2]
    given = 0
    for at in range(0, slots.size, halves):
        found = signed(slots[at + halves - 1])
        if found == _EMPTY:
            continue
        if found >= keys:
            return False
        given += 1
        second = second_at(slots, at) if wide else np.uint64(0)
        first = first_of(rank_at(slots, at), second, wide, seed)
        if wide:
            words[2 * found] = first
            words[2 * found + 1] = second
        else:
            words[found] = first
    return given == keys
