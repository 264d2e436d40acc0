"""How an id is written as a key, and read back from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandana_kv.errors import RowMissingError

__all__ = ["KEY_CODECS", "Codec", "KeyCodec", "KeyDecoder"]

KeyCodec = Callable[[str, npt.NDArray[np.int64]], Sequence[bytes]]
"""A function of a table's name and ids (n,) that returns the key of each."""

KeyDecoder = Callable[[Sequence[bytes]], npt.NDArray[np.int64]]
"""A function of keys that returns the id of each, int64 (n,); -1 where a key is of none."""

# No id has as many digits, zeros in front included.
_MOST_DIGITS = 64


def _no_prefix(_table: str) -> bytes:
    return b""


@dataclass(frozen=True)
class Codec:
    """Both directions; called as a :data:`KeyCodec`, it encodes.

    Attributes
    ----------
    encode : KeyCodec
        Returns keys without the prefix.
    decode : KeyDecoder
        Takes keys without the prefix.
    prefix : callable
        A function of a table's name: what every key of it begins with.
    """

    encode: KeyCodec
    decode: KeyDecoder
    prefix: Callable[[str], bytes] = _no_prefix

    def __call__(self, table: str, ids: npt.NDArray[np.int64]) -> Sequence[bytes]:
        """Return the key of each of `ids` (n,)."""
        keys, prefix = self.encode(table, ids), self.prefix(table)
        return [prefix + key for key in keys] if prefix else keys


def _fixed(dtype: str) -> Codec:
    width = np.dtype(dtype).itemsize

    def keys(table: str, ids: npt.NDArray[np.int64]) -> list[bytes]:
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 1 << (8 * width)):
            raise RowMissingError(f"table {table!r}: not every id fits a key of {width} bytes")
        raw = ids.astype(dtype).tobytes()
        return [raw[at : at + width] for at in range(0, len(raw), width)]

    def decoded(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        fits = np.fromiter((len(key) == width for key in keys), np.bool_, len(keys))
        found = np.full(len(keys), -1, np.int64)
        raw = b"".join(keys if fits.all() else (key for key in keys if len(key) == width))
        numbers = np.frombuffer(raw, dtype).astype(np.uint64).view(np.int64)
        found[fits] = np.maximum(numbers, -1)  # from 2^63 up: no id either
        return found

    return Codec(keys, decoded)


def _decimal(_table: str, ids: npt.NDArray[np.int64]) -> list[bytes]:
    return [b"%d" % number for number in ids.tolist()]


def _of_decimal(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    numbers = (int(key) if key.isdigit() and len(key) <= _MOST_DIGITS else -1 for key in keys)
    return np.fromiter(
        (number if number < 1 << 63 else -1 for number in numbers), np.int64, len(keys)
    )


KEY_CODECS: dict[str, Codec] = {
    "uint64-be": _fixed(">u8"),
    "uint64-le": _fixed("<u8"),
    "uint32-be": _fixed(">u4"),
    "uint32-le": _fixed("<u4"),
    "decimal": Codec(_decimal, _of_decimal),
    "table:decimal": Codec(_decimal, _of_decimal, lambda table: table.encode() + b":"),
}
"""Codecs by name: the id in binary, or as text, with the table's name before it perhaps.

Text is read back with zeros in front, too."""
