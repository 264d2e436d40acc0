"""What reads of a cluster are about: keys and where they are, and what one node was asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters import resp_replies as wire
from bandana_kv.adapters.keys import Keys
from bandana_kv.adapters.resp_link import Link

__all__ = ["Flight", "Located", "Pace", "key_of"]


@dataclass(frozen=True)
class Pace:
    """How long reads wait.

    Attributes
    ----------
    second_ask_s
        Past this another copy is asked as well.
    patience_s
        Past this a block is given up.
    """

    second_ask_s: float = 0.05
    patience_s: float = 0.5


@dataclass(frozen=True, eq=False)
class Located:
    """Keys, and where they are.

    Attributes
    ----------
    keys : ndarray
        uint64 (n,).
    slots : ndarray
        int64 (n,); -1: their space is empty.
    shift_of : ndarray
        uint8 (n,): how many bits of the block are its place in its chunk.
    prefix : ndarray
        uint8: what all keys begin with.
    known : bool
        All have a slot.
    """

    keys: Keys
    slots: NDArray[np.int64]
    shift_of: NDArray[np.uint8]
    prefix: NDArray[np.uint8]
    known: bool


def key_of(prefix: bytes, key: int, shift: int) -> bytes:
    """Return the key of a block as engines have it."""
    space, block = key >> 40, key & ((1 << 40) - 1)
    return prefix + b"%06x%010x}%02x" % (space, block >> shift, block & ((1 << shift) - 1))


class Flight:
    """What one node was asked for, and how much of it has come."""

    __slots__ = ("apart", "begun", "counts", "cursor", "fresh", "late", "link", "number", "order")

    def __init__(
        self,
        number: int,
        link: Link,
        order: NDArray[np.int64],
        counts: NDArray[np.int64],
        *,
        apart: bool,
    ) -> None:
        self.apart = apart
        self.number = number
        self.link = link
        self.order = order
        self.counts = counts
        self.cursor = np.zeros(wire.CURSOR_WORDS, np.int64)
        self.cursor[wire.ITEM] = -1
        self.fresh = link.fresh
        self.begun = time.monotonic()
        self.late = False
