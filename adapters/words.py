"""What compiled code is given to read an engine's blocks with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Standing", "Words"]

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
