"""Payloads, the values of blocks: arrays of them, checked, made, and joined to large writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from bandana_kv.adapters.keys import Keys, check_rising, checked_keys
from bandana_kv.errors import InputError

__all__ = [
    "PAGE_BYTES",
    "Payloads",
    "checked_out",
    "checked_payloads",
    "chunks",
    "empty_payloads",
]

PAGE_BYTES = 4096
# What one write to the engine holds: large enough for sequential writing, small enough
# that a loader stays within a few dozen MiB whatever the size of the table.
_CHUNK_BYTES = 16 << 20

Payloads = npt.NDArray[np.uint8]


def empty_payloads(count: int, payload_bytes: int) -> Payloads:
    """Return an array for `count` payloads that begins at a page's boundary.

    Direct reads can fill it without a copy if `payload_bytes` is whole pages too.
    """
    held = np.empty(count * payload_bytes + PAGE_BYTES, np.uint8)
    start = -held.ctypes.data % PAGE_BYTES
    return held[start : start + count * payload_bytes].reshape(count, payload_bytes)


def checked_out(out: Payloads | None, count: int, payload_bytes: int) -> Payloads:
    """Return `out`, made if it is None; InputError unless so many payloads fit into it."""
    shape = (count, payload_bytes)
    if out is None:
        return empty_payloads(count, payload_bytes)
    array = np.asarray(out)
    if array is not out or out.dtype != np.uint8 or out.shape != shape:
        raise InputError(f"out must be a uint8 array of shape {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out must be C-contiguous and writeable")
    return out


def checked_payloads(keys: Keys, payloads: Payloads, payload_bytes: int) -> Payloads:
    """Return `payloads`, one behind the other; InputError unless there is one for each key."""
    shape = (len(keys), payload_bytes)
    array = np.asarray(payloads)
    if array.dtype != np.uint8 or array.shape != shape:
        raise InputError(
            f"payloads must be uint8 of shape {shape}, not {array.dtype} of {array.shape}"
        )
    return np.ascontiguousarray(array)


def chunks(
    batches: Iterable[tuple[Keys, Payloads]], payload_bytes: int
) -> Iterator[tuple[Keys, Payloads]]:
    """Check batches, and yield them joined or cut to chunks of one size."""
    size = max(1, _CHUNK_BYTES // payload_bytes)
    keys_held = np.empty(size, np.uint64)
    payloads_held = empty_payloads(size, payload_bytes)
    held = 0
    newest = -1
    for batch_keys, batch_payloads in batches:
        keys = checked_keys(batch_keys)
        payloads = checked_payloads(keys, batch_payloads, payload_bytes)
        newest = check_rising(keys, newest)
        at = 0
        while at < len(keys):
            take = min(size - held, len(keys) - at)
            if take == size:  # nothing to join it with
                yield keys[at : at + size], payloads[at : at + size]
                at += size
                continue
            keys_held[held : held + take] = keys[at : at + take]
            payloads_held[held : held + take] = payloads[at : at + take]
            held, at = held + take, at + take
            if held == size:
                yield keys_held, payloads_held
                held = 0
    if held:
        yield keys_held[:held], payloads_held[:held]
