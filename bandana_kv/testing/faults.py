"""An adapter that fails on purpose: what a bad device, and a full one, do to the library.

Faults are drawn from one seed, or scheduled by the number of the operation. Bytes are damaged
after the engine has answered, below every check of the library; the engine itself stays sound,
so that the same blocks read well a moment later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from bandana_kv import adapters
from bandana_kv.adapters.contract import Adapter, BulkWriter, Capabilities, Keys, Payloads
from bandana_kv.errors import InputError

__all__ = ["FaultyAdapter", "Faults", "READ_FAULTS", "WRITE_FAULTS", "injecting"]

READ_FAULTS = ("error", "short", "flip", "torn", "slow")
WRITE_FAULTS = ("error", "full", "slow")
_SLOW_SECONDS = 0.003
_REMEMBERED = 256


class Faults:
    """Says which operation fails, and how; safe to use from many threads.

    Parameters
    ----------
    seed
        Of all that is drawn.
    probability
        Of a fault, for each operation.
    scheduled
        Faults by number of the operation, the first being 0: one of ``"error"`` (input/output
        error), ``"full"`` (no space left), ``"short"`` (the end of a block is not there),
        ``"flip"`` (of one bit), ``"torn"`` (half a block is what was there before, or zeros),
        ``"slow"``, and ``"kill"`` (the process dies). One that the operation cannot have does
        not happen.
    """

    def __init__(
        self, seed: int, probability: float = 0.0, scheduled: Mapping[int, str] | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        """How many there were, by kind."""
        self.operations = 0
        """How many operations there were."""
        self.probability = probability
        """May be changed at any time."""
        self._scheduled = dict(scheduled or {})
        self._lock = threading.Lock()

    def next(self, kinds: tuple[str, ...]) -> str | None:
        """Begin an operation; return its fault, counted, or None. May raise or sleep itself.

        Raises
        ------
        OSError
            The fault was ``"error"`` or ``"full"``.
        """
        with self._lock:
            kind = self._scheduled.pop(self.operations, None)
            self.operations += 1
            if kind is None and self.random.random() < self.probability:
                kind = self.random.choice(kinds)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind not in kinds:
                return None
            self.injected[kind] += 1
        if kind == "error":
            raise OSError(errno.EIO, "input/output error (injected)")
        if kind == "full":
            raise OSError(errno.ENOSPC, "no space left on device (injected)")
        if kind == "slow":
            time.sleep(_SLOW_SECONDS)
            return None
        return kind

    def schedule(self, after: int, kind: str) -> None:
        """Let the operation fail that comes after so many more."""
        with self._lock:
            self._scheduled[self.operations + after] = kind

    def below(self, count: int) -> int:
        """Draw a number from 0 up to, and without, `count`."""
        with self._lock:
            return self.random.randrange(count)


class FaultyAdapter(Adapter):
    """Another adapter, with faults; closing it closes the other.

    Parameters
    ----------
    inner
        The adapter, open.
    faults
        Which operations fail. Several adapters may share them.
    """

    name: ClassVar[str] = "faulty"
    engine_errors = (OSError,)

    def __init__(self, inner: Adapter, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._before: dict[int, Payloads] = {}
        super().__init__(inner._where, pages=inner.pages, read_only=inner._read_only)
        self.name = inner.name  # type: ignore[misc]  # a store must find its engine in it

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Refuse: there is no engine of that kind."""
        del path, size_hint_bytes, pages
        raise InputError("a faulty adapter wraps one that is open")

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Refuse: there is no engine of that kind."""
        del path, read_only, pages
        raise InputError("a faulty adapter wraps one that is open")

    @property
    def capabilities(self) -> Capabilities:
        """What the other can do."""
        return self._inner.capabilities

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        return self._inner.payload_of(pages)

    def _read(self, keys: Keys, out: Payloads) -> None:
        fault = self._faults.next(READ_FAULTS)
        self._inner.multi_get(keys, out)
        if fault is not None:
            at = self._faults.below(len(keys))
            self._damage(fault, int(keys[at]), out[at])

    def _damage(self, fault: str, key: int, block: Payloads) -> None:
        """Change a block as it was read, so that it is not what it should be."""
        sound = block.copy()
        if fault == "short":
            block[self._faults.below(block.size) :] = 0
        elif fault == "torn":
            half = block.size // 2
            block[half:] = self._before.get(key, np.zeros_like(block))[half:]
        if fault == "flip" or np.array_equal(block, sound):
            # Zeros may have been there before.
            bit = self._faults.below(8 * block.size)
            block[bit // 8] ^= 1 << bit % 8

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        self._faults.next(WRITE_FAULTS)
        held = [at for at, key in enumerate(keys) if self._has(int(key))]
        old = self._inner.multi_get(keys[held])
        self._inner.put_many(keys, payloads)
        for at, block in zip(held, old, strict=True):
            if len(self._before) < _REMEMBERED:
                self._before[int(keys[at])] = block

    def _has(self, key: int) -> bool:
        return (
            self._inner._call(lambda: self._inner._any_stored(np.array([key], np.uint64)))
            is not None
        )

    def _bulk_writer(self, count: int) -> BulkWriter:
        self._faults.next(WRITE_FAULTS)
        return _FaultyWriter(self._inner, self._faults, count)

    def _any_stored(self, keys: Keys) -> int | None:
        self._faults.next(("error", "slow"))
        return self._inner._call(lambda: self._inner._any_stored(keys))

    def _space_is_empty(self, space: int) -> bool:
        self._faults.next(("error", "slow"))
        return self._inner.space_is_empty(space)

    def _delete_space(self, space: int) -> None:
        self._faults.next(WRITE_FAULTS)
        self._inner.delete_space(space)

    def settle(self, copies: int) -> None:
        """Wait for the other's copies."""
        self._inner.settle(copies)

    def _close(self) -> None:
        self._inner.close()


class _FaultyWriter:
    """A bulk load of the other adapter, with faults."""

    def __init__(self, inner: Adapter, faults: Faults, count: int) -> None:
        self._inner = inner
        self._faults = faults
        self._writer = inner._call(lambda: inner._bulk_writer(count))

    def write(self, keys: Keys, payloads: Payloads) -> None:
        self._faults.next(WRITE_FAULTS)
        self._inner._call(lambda: self._writer.write(keys, payloads))

    def finish(self) -> None:
        self._faults.next(WRITE_FAULTS)
        self._inner._call(self._writer.finish)

    def abort(self) -> None:
        self._writer.abort()


@contextlib.contextmanager
def injecting(faults: Faults) -> Iterator[None]:
    """Give every engine that this process makes or opens meanwhile these faults."""
    create, open_existing = adapters.create, adapters.open_existing

    def faulty_create(*args: Any, **options: Any) -> Adapter:
        _opening(faults)
        return FaultyAdapter(create(*args, **options), faults)

    def faulty_open(*args: Any, **options: Any) -> Adapter:
        _opening(faults)
        return FaultyAdapter(open_existing(*args, **options), faults)

    adapters.create, adapters.open_existing = faulty_create, faulty_open
    try:
        yield
    finally:
        adapters.create, adapters.open_existing = create, open_existing


def _opening(faults: Faults) -> None:
    try:
        faults.next(("error", "slow"))
    except OSError as error:
        raise FaultyAdapter._cannot_open("an engine", error) from error
