"""Many direct reads in flight, in compiled code that never holds the GIL.

By io_uring where the system allows it (:mod:`~.blockfile_ring`), else by its older way
(:mod:`~.blockfile_aio`). A single read, and all where both are forbidden, by ``pread``; then queue
depth comes from threads.

- Direct reads go to memory at a page's boundary. An array that does not lie there is filled
  by way of memory that does, which costs a copy.
- Addresses of C functions must not be in cached machine code: the linker finds them by name.
"""

from __future__ import annotations

import functools
import mmap
import threading
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from bandana_kv.adapters.blockfile_aio import Aio, read_by_aio
from bandana_kv.adapters.blockfile_files import View
from bandana_kv.adapters.blockfile_ring import Ring, read_by_ring
from bandana_kv.adapters.blockfile_runs import ABSENT, QUEUES, SIZE, read_singly, runs_at
from bandana_kv.adapters.contract import Standing
from bandana_kv.kernels.addresses import add, compare_and_set, store, words_at
from bandana_kv.kernels.compile import brief, foreign, inlined, kernel
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY, READ_WORDS

__all__ = ["ABSENT", "BlockReads", "aligned_bytes"]

_PAGE_BYTES = 4096
_MOST_QUEUES = 8

types: Any = numba.types  # numba's own annotations say too little of these
_int64 = types.int64


def aligned_bytes(count: int) -> npt.NDArray[np.uint8]:
    """Return `count` zero bytes, (count,), that begin at a page's boundary."""
    return np.frombuffer(mmap.mmap(-1, max(1, count)), np.uint8, count)


# -- kernels ------------------------------------------------------------------------------

# A queue, which is a ring or the older way: whether it is there, and nobody has it; what it is.
_STATE, _KIND, _QUEUE_WORDS = range(3)
_QUEUE_SIZE = 8
_NONE, _FREE, _TAKEN = range(3)
_RING, _AIO = range(2)
# Behind the queues: how many more could have been of use.
_WANTED = _QUEUE_SIZE * _MOST_QUEUES


@inlined
def _take_queue(queues: np.ndarray) -> int:
    """Return where a queue stands that nobody else has from now on, or -1."""
    for number in range(_MOST_QUEUES):
        at = number * _QUEUE_SIZE
        if queues[at] == _FREE and compare_and_set(queues, at, _FREE, _TAKEN):
            return at
    add(queues, _WANTED, 1)
    return -1


@kernel
def _read(view: np.ndarray, reads_at: int, count: int) -> int:
    runs = runs_at(view)
    reads = words_at(reads_at, READ_WORDS * count).reshape(count, READ_WORDS)
    queues = words_at(view[QUEUES], _WANTED + 1)
    at = _take_queue(queues) if count > 1 else -1  # with so many threads, no need of one
    if at < 0:
        reads[:, FOUND] = 0
    else:
        queue = queues[at + _QUEUE_WORDS : at + _QUEUE_SIZE]
        if queues[at + _KIND] == _RING:
            read_by_ring(queue, runs, view[SIZE], reads)
        else:
            read_by_aio(queue, runs, view[SIZE], reads)
        store(queues, at + _STATE, _FREE)
    # All, or what the queue did not bring: it may be forbidden since, or have been interrupted.
    read_singly(runs, view[SIZE], reads)
    return 0


@brief
def _show_queue(queues: np.ndarray, at: int) -> None:
    store(queues, at, _FREE)


@brief
def _hide_queue(queues: np.ndarray, at: int) -> bool:
    """Take a queue away, unless somebody has it."""
    hidden: bool = compare_and_set(queues, at, _FREE, _NONE)
    return hidden


@functools.cache
def _function() -> Any:
    """Return what :data:`~.contract.Words` names; made when first needed."""

    @foreign(_int64(_int64, _int64, _int64))
    def read(view_at: int, reads_at: int, count: int) -> int:
        return _read(words_at(view_at, QUEUES + 1), reads_at, count)

    return read


# -- reads --------------------------------------------------------------------------------


def _new_queue() -> Ring | Aio:
    try:
        return Ring()
    except OSError:
        return Aio()


class BlockReads:
    """Reads blocks for any number of threads at once.

    Parameters
    ----------
    block_bytes
        Length of a block, a multiple of 4096.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._function = _function().address  # loaded now, not in the middle of a lookup
        self._closed = False
        self._queues: dict[int, Ring | Aio] = {}  # by where it stands in the next
        self._words = np.zeros(_WANTED + 1, np.int64)
        self._wanted = self._words.data[_WANTED:]  # quicker to look at
        self._most_queues = _MOST_QUEUES
        self._making = threading.Lock()
        self._make_queue()
        self.many_at_once = bool(self._queues)
        """Whether one call keeps many reads in flight."""

    def _make_queue(self) -> None:
        """Have one more queue, unless there are enough, or the kernel or a limit forbids."""
        with self._making:
            self._words[_WANTED] = 0
            if len(self._queues) >= self._most_queues or self._closed:
                return
            try:
                queue = _new_queue()
            except OSError:
                self._most_queues = 0
                return
            at = len(self._queues) * _QUEUE_SIZE
            first = at + _QUEUE_WORDS
            self._words[at + _KIND] = _AIO if isinstance(queue, Aio) else _RING
            self._words[first : first + len(queue.words)] = queue.words
            self._queues[at] = queue
            _show_queue(self._words, at)

    def after_fork_in_child(self) -> None:
        """Begin anew with queues: those of the parent are still the parent's."""
        self._words[:] = 0
        self._queues = {}
        self._making = threading.Lock()
        self._most_queues = _MOST_QUEUES if self.many_at_once else 0

    def close(self) -> None:
        """Release the queues; those in use go with what refers to them."""
        with self._making:
            self._closed = True
            for at in list(self._queues):
                if _hide_queue(self._words, at):
                    del self._queues[at]

    def standing(self, view: View) -> Standing:
        """Return what compiled code needs to read blocks of a view, whose files it keeps open."""
        if self._wanted[0]:
            self._make_queue()
        standing = view.standing
        if standing is None:
            place = view.runs.ctypes.data, len(view.runs), self._words.ctypes.data
            words = np.array([self._function, self._block_bytes, *place], np.int64)
            # Not the view, which refers to it.
            standing = Standing(words, view.runs, view.files, self._words, self._queues)
            view.standing = standing
        return standing

    def read(
        self, view: View, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.uint8]
    ) -> tuple[int, int]:
        """Read the blocks of `keys` (n,) into `out` (n, block_bytes), without the GIL.

        Returns
        -------
        index, found
            ``(-1, 0)``, or the first key that could not be read, and why: :data:`ABSENT`, a
            negated errno, or how many bytes there were.
        """
        size = self._block_bytes
        straight = out.ctypes.data % _PAGE_BYTES == 0
        memory = out if straight else aligned_bytes(out.size).reshape(out.shape)
        reads = np.zeros((len(keys), READ_WORDS), np.int64)
        reads[:, KEY] = keys.view(np.int64) if keys.flags.c_contiguous else keys.astype(np.int64)
        reads[:, ADDRESS] = memory.ctypes.data + size * np.arange(len(keys))
        _read(self.standing(view).words, reads.ctypes.data, len(keys))
        if not straight:
            out[...] = memory
        bad = np.flatnonzero(reads[:, FOUND] != size)
        return (int(bad[0]), int(reads[bad[0], FOUND])) if bad.size else (-1, 0)
