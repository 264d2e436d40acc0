"""Which requests go to the new store: the same ones again and again, by a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import InputError

__all__ = ["chosen", "key_bytes", "request_bytes"]

# Never change it: a request would change sides with an upgrade. Other hashes of the same
# keys, which sort out what reaches this process, know nothing of it.
_SEED = 0x62616E64616E61


def chosen(request: bytes, fraction: float) -> bool:
    """Return whether a request is among a fraction; it stays so when the fraction grows."""
    return xxhash.xxh3_64_intdigest(request, seed=_SEED) < int(fraction * 2.0**64)


def key_bytes(key: object) -> bytes:
    """Return what is hashed of a caller's key; never empty.

    Raises
    ------
    InputError
        It is no str, bytes or int.
    """
    if isinstance(key, bytes):
        return b"key\0" + key
    if isinstance(key, (str, int, np.integer)) and not isinstance(key, bool):
        return b"key\0" + str(key).encode("utf-8", "surrogatepass")
    raise InputError(f"key {key!r} is no str, bytes or int")


def request_bytes(ids: Mapping[str, NDArray[Any]]) -> bytes:
    """Return what is hashed of a request: its tables by name, and their ids in order."""
    parts = (
        name.encode("utf-8", "surrogatepass") + b"\0" + ids[name].astype("<i8").tobytes()
        for name in sorted(ids)
    )
    return b"\0".join(parts)
