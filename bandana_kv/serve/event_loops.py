"""Requests of event loops: what DRAM holds is answered at once, the rest comes by a descriptor.

One thread reads for all loops where the engine's reads can be begun without waiting for them
(:mod:`bandana_kv.serve.pending`); else, and where something is wrong, a few threads do, a request
at a time. What they have answered a loop hears of by an eventfd of its own, which it watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, ThreadError
from bandana_kv.serve import pending, tickets
from bandana_kv.serve.words import STATE
from bandana_kv.system.interrupts import without_interrupts
from bandana_kv.system.threads import start

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter, Standing
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import BlockReader
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.version import ServedVersion

__all__ = ["EventLoops", "Request"]

_log = logging.getLogger("bandana_kv")

_AT_ONCE = 1024
# So long after its last request a loop that ended is kept: who told it of that may be about to.
_KEPT_S = 1.0


@dataclass(slots=True, eq=False)
class Request:
    """A request of which DRAM did not hold all: from when it is looked up until its loop hears.

    Attributes
    ----------
    serving
        The version that it is inside of.
    words, address
        Its ticket and its scratch, and where they are; see :mod:`bandana_kv.serve.tickets`.
    out
        uint8 (n, row_bytes), its own, so that it may be cancelled at any time.
    deadline
        By when it is to be answered.
    future
        Of the loop that it is from.
    """

    serving: ServedVersion
    served: ServedTable
    ids: NDArray[np.integer[Any]]
    missed: int
    words: NDArray[np.int64]
    address: int
    out: NDArray[np.uint8]
    deadline: Deadline | None
    future: asyncio.Future[None] | None = None
    engine: Standing | None = None
    error: BaseException | None = None
    turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def taken(self) -> bool:
        """Whether its version is left when it is over, however that comes; else it is not begun."""
        return bool(self.words[tickets.TAKEN])

    def give_up(self) -> None:
        """Read nothing for it that is not begun: nobody wants it any more."""
        self.words[tickets.GONE] = 1

    def settle(self) -> None:
        """Let its caller go on, in the thread of the loop."""
        future = self.future
        if future is None or future.done():
            return
        if self.error is None:
            future.set_result(None)
        else:
            future.set_exception(self.error)


class _Loop:
    """An event loop, and its requests that are pending.

    It neither keeps the loop nor who serves it: a loop that lives long keeps this.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, then: EventLoops) -> None:
        self.of = weakref.ref(loop)
        self._then = weakref.ref(then)
        self.requests: dict[int, Request] = {}
        self.idle_since = 0.0
        self._found = np.empty(_AT_ONCE + 1, np.int64)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.words = np.zeros(tickets.LOOP_WORDS, np.int64)
        self.words[tickets.LOOP_WAKE] = self.wake
        self.address: int = self.words.ctypes.data
        loop.add_reader(self.wake, self._hear)

    @property
    def ended(self) -> bool:
        """Whether it runs no more, for good."""
        loop = self.of()
        return loop is None or loop.is_closed()

    def done(self, found: NDArray[np.int64]) -> Iterator[Request]:
        """Give the requests that are done, each once, whoever asks."""
        found[-1] = 0
        while True:
            count = tickets.take_done(self.address, int(found[-1]), found)
            for address in found[:count].tolist():
                yield self.requests.pop(address)
            if not found[-1]:
                return

    def _hear(self) -> None:
        """Hear, in its own thread, of requests that are done."""
        with without_interrupts():
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.wake)
            for request in self.done(self._found):
                then = self._then()
                if then is None or not then.goes_on(request, self):
                    request.serving.leave()
                    request.settle()

    def hear_from(self, then: EventLoops) -> None:
        """Hear of requests that are done, in another thread; it may never run again."""
        for request in self.done(np.empty(_AT_ONCE + 1, np.int64)):
            if self.ended or not then.goes_on(request, self):
                request.serving.leave()
                self.call(request.settle)

    def call(self, function: Any) -> None:
        """Have a function called in its own thread, if it ever runs again."""
        loop = self.of()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(function)

    def let_go(self) -> None:
        """Watch no more, in its own thread."""
        self._hear()
        loop = self.of()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.wake)

    def __del__(self) -> None:
        if hasattr(self, "wake"):
            os.close(self.wake)


class _Reader:
    """The thread that reads what is pending, of one class of adapters."""

    def __init__(self, adapter: type[Adapter]) -> None:
        self.lock = threading.Lock()
        """Held by who puts something in, and who says that no more is."""
        self.takes = False
        self._thread: threading.Thread | None = None
        self._queue = adapter.queue()
        if self._queue is None:
            return
        self.reads = pending.PendingReads(self._queue.words)
        with contextlib.suppress(ThreadError):
            self._thread = start(self._read, "bandana-kv-loops")
            self.takes = True

    @property
    def may_start(self) -> bool:
        """Whether no thread could be started, which may be otherwise by now."""
        return self._queue is not None and self._thread is None

    def _read(self) -> None:
        pending.read_pending(self.reads.words)
        with self.lock:
            failed, self.takes = self.takes, False
        if failed:
            _log.warning(
                "io_uring failed while event loops waited for it; a few threads read instead",
                extra={"event": "queue_failed"},
            )
        pending.hand_back(self.reads.words)

    def put_in(self, request: Request, loop: _Loop) -> bool:
        """Have a request read; False: no more."""
        with self.lock:
            if not self.takes or request.engine is None:
                return False
            pending.put_in(
                self.reads.address,
                request.address,
                request.served.address,
                request.engine.address,
                loop.address,
                request.out,
            )
            return True

    def end(self, patience_s: float | None) -> None:
        """End when all that was put in is answered."""
        with self.lock:
            self.takes = False
        if self._thread is not None:
            pending.stop(self.reads.words)
            self._thread.join(patience_s)


class EventLoops:
    """Requests of any number of event loops, pending.

    Parameters
    ----------
    reader
        Reads blocks for the few threads, of which there are as many as it has.
    """

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._closed = False
        self._loops: dict[int, _Loop] = {}
        self._ended: list[_Loop] = []
        self._readers: dict[type[Adapter], _Reader] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def answer(self, request: Request) -> None:
        """Wait, without blocking the loop, until a request is answered.

        `request.taken` says whether it was begun, also after an error.
        """
        running = asyncio.get_running_loop()
        loop = self._loops.get(id(running))
        if loop is None or loop.of() is not running:
            try:
                loop = self._loop_of(running)
            except OSError:  # no descriptor is to be had: the loop waits, rather than nobody
                self._finish(request)
                if request.error is not None:
                    raise request.error from None
                return
        adapter = request.served.stored.adapter
        request.future = running.create_future()
        if not request.served.breaks and request.deadline is None:
            request.engine = adapter.standing()
        reader = None
        if request.engine is not None:
            reader = self._readers.get(type(adapter)) or self._reader_of(type(adapter))
        loop.requests[request.address] = request
        try:
            if reader is None or not reader.put_in(request, loop):
                self._begin_in_thread(request, loop)
            await request.future
        except BaseException:
            if request.taken:
                request.give_up()
            else:
                del loop.requests[request.address]
            raise

    def _loop_of(self, running: asyncio.AbstractEventLoop) -> _Loop:
        self.hear()
        with self._lock:
            loop = self._loops.get(id(running))
            if loop is not None:  # of one that was where this one is now
                self._ended.append(loop)
            loop = self._loops[id(running)] = _Loop(running, self)
            return loop

    def _reader_of(self, adapter: type[Adapter]) -> _Reader:
        with self._lock:
            if self._closed:
                raise InputError("the store is closed")
            reader = self._readers.get(adapter)
            if reader is None:
                reader = _Reader(adapter)
                if not reader.may_start:
                    self._readers[adapter] = reader
            return reader

    @without_interrupts()
    def _begin_in_thread(self, request: Request, loop: _Loop) -> None:
        with self._lock:
            if self._closed:
                raise InputError("the store is closed")
        request.words[tickets.TAKEN] = 1
        self._in_thread(request, loop)

    def goes_on(self, request: Request, loop: _Loop) -> bool:
        """Go on with a request that was handed over, in a thread that may wait; False: it is over.

        That is so where nobody wants it any more, too.
        """
        future = request.future
        if not request.words[tickets.TICKET + STATE] or future is None or future.cancelled():
            return False
        loop.requests[request.address] = request
        self._in_thread(request, loop)
        return True

    def _in_thread(self, request: Request, loop: _Loop) -> None:
        def finish() -> None:
            if next(request.turns):
                return  # a thread took it, or who could not start one
            self._finish(request)
            tickets.hand_over(request.address, loop.address)

        try:
            self._pool().submit(finish)
        except RuntimeError:  # no thread can be started, or is any more
            finish()  # unless one that has become free takes it just now

    def _finish(self, request: Request) -> None:
        """Answer a request in a thread that may wait; what goes wrong is kept."""
        if request.words[tickets.GONE]:
            return
        scratch = request.words[tickets.TICKET :]
        try:
            request.served.finish(
                self._reader, request.ids, request.missed, scratch, request.out, request.deadline
            )
        except BaseException as error:
            request.error = error

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                name = "bandana-kv-async"
                self._threads = ThreadPoolExecutor(self._reader.depth, thread_name_prefix=name)
            return self._threads

    @without_interrupts()
    def hear(self) -> None:
        """Let requests leave their versions that are done, where a loop does not run to do so."""
        with self._lock:
            for key, loop in list(self._loops.items()):
                if loop.ended:
                    self._ended.append(self._loops.pop(key))
            loops = [*self._loops.values(), *self._ended]
        for loop in loops:
            loop.hear_from(self)
        now = time.monotonic()
        with self._lock:
            for loop in list(self._ended):
                loop.idle_since = loop.idle_since or now
                if loop.requests:
                    loop.idle_since = 0.0
                elif now - loop.idle_since > _KEPT_S:
                    self._ended.remove(loop)

    def close(self, patience_s: float | None) -> None:
        """Answer what is pending, `patience_s` at most, and end all threads."""
        with self._lock:
            self._closed = True
            readers = list(self._readers.values())
        for reader in readers:
            reader.end(patience_s)
        self.hear()
        threads = self._threads
        if threads is not None:
            threads.shutdown(wait=patience_s is None)
        self.hear()
        here = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        for loop in self._loops.values():
            if loop.of() is here:
                loop.let_go()
            else:
                loop.call(loop.let_go)

    def release(self) -> None:
        """Let go of what others may have written to until now; nobody is inside any more."""
        self._readers.clear()
