"""What compiled code is given to read an engine's blocks with."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

__all__ = ["Queue", "Standing", "Words"]

Words = npt.NDArray[np.int64]
"""What compiled code needs to read blocks of an engine.

The first is the address of a function of three int64: the address of these words, the address of
the reads, and their number. Each read is four int64: a key; the address of memory for a block, at
a page's boundary; written, how many bytes of it were found, or what else
:meth:`Adapter.why_unread` explains; and one that is not the engine's. It is called without the
GIL, and returns 0; or another number, and then nothing is known of any of the blocks:
:meth:`Adapter.multi_get` is to be asked.
"""


class Standing:
    """Words that any number of threads may use at once, for as long as this is referenced.

    Parameters
    ----------
    words
        As :data:`Words` are.
    held
        What must be kept for them to be good.

    Attributes
    ----------
    words
        As given.
    address : int
        Where they are.
    """

    __slots__ = ("_held", "address", "words")

    def __init__(self, words: Words, *held: object) -> None:
        self.words = words
        self.address: int = words.ctypes.data
        self._held = held


class Queue:
    """Reads in flight that one thread waits for together: what event loops wait for.

    It reads blocks of any adapter of its class, with the words of :meth:`Adapter.standing`.

    Parameters
    ----------
    words
        int64. The first is the address of a function that begins a read: of the address of these
        words, that of an engine's (:data:`Words`, of :meth:`Adapter.standing`), and that of the
        read, which stays where it is until it has ended. It returns 1; or 0, and then it was not
        begun. The second is the address of one that waits: of the address of these words, that of
        room for addresses, and how many ends are to be waited for at least. It puts the addresses
        of reads that have ended since, whose FOUND is written, and returns how many; fewer than
        that where it was woken. -1: the queue has failed, nothing is in flight, nor will be. Then
        `wake`; and how many reads may be in flight. What follows is the engine's.
    wake
        A descriptor of an eventfd: whoever waits returns when it is written to. Closed with this.
    held
        What must be kept for them to be good.

    Notes
    -----
    One thread uses it, without the GIL. Nothing may be in flight when it is given up.
    """

    __slots__ = ("_held", "address", "wake", "words")

    def __init__(self, words: Words, wake: int, *held: object) -> None:
        self.words = words
        self.address: int = words.ctypes.data
        self.wake = wake
        self._held = held

    def __del__(self) -> None:
        os.close(self.wake)
