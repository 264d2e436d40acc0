"""What the tests of an adapter are run on: adapters, made and loaded; threads, and forks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from bandana_kv import adapters
from bandana_kv.adapters.contract import Adapter, Keys, Payloads, block_keys

__all__ = [
    "HINT_BYTES",
    "Conformance",
    "expected",
    "in_child",
    "in_threads",
    "load",
    "payloads_for",
]

HINT_BYTES = 1 << 20


def payloads_for(keys: Keys, payload_bytes: int, version: int = 0) -> Payloads:
    """Return payloads that differ between keys and between versions.

    Parameters
    ----------
    keys
        uint64 (n,).
    payload_bytes
        Length of each payload.
    version
        Another number makes other payloads for the same keys.

    Returns
    -------
    uint8 array (n, payload_bytes)
    """
    with np.errstate(over="ignore"):
        seeds = (keys + np.uint64(version * 7919)) * np.uint64(0x9E3779B97F4A7C15)
        steps = np.arange(-(-payload_bytes // 8), dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        words = seeds[:, None] + steps
    payloads: Payloads = words.view(np.uint8)[:, :payload_bytes]
    return payloads


class Conformance:
    """The adapter under test, and how to come by it."""

    adapter_name: ClassVar[str]
    """The name that the adapter is registered under."""

    # -- to override ----------------------------------------------------------------------

    def create(self, path: Path, pages: int = 1) -> Adapter:
        """Return a new, empty, writable adapter at `path`."""
        return adapters.create(self.adapter_name, path, size_hint_bytes=HINT_BYTES, pages=pages)

    def reopen(self, path: Path, *, read_only: bool = True, pages: int = 1) -> Adapter:
        """Return another adapter on what :meth:`create` made at `path`."""
        return adapters.open_existing(self.adapter_name, path, read_only=read_only, pages=pages)

    def check_after(self, path: Path) -> None:
        """Check, after each test and with its adapters closed, what must be untouched."""

    # -- fixtures -------------------------------------------------------------------------

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Give the path of the adapter under test."""
        return tmp_path / "engine"

    @pytest.fixture
    def adapter(self, path: Path) -> Iterator[Adapter]:
        """Give an empty adapter."""
        with self.create(path) as made:
            yield made
        self.check_after(path)

    @pytest.fixture
    def loaded(self, adapter: Adapter) -> Adapter:
        """Give an adapter with blocks 0 to 99 of spaces 3 and 4."""
        for space in (3, 4):
            load(adapter, block_keys(space, np.arange(100)))
        return adapter


def expected(adapter: Adapter, keys: Keys) -> Payloads:
    """Return what :func:`load` puts under `keys`."""
    return payloads_for(keys, adapter.payload_bytes)


def load(adapter: Adapter, keys: Keys, version: int = 0) -> None:
    """Bulk load `keys` with the payloads of a version."""

    def batches() -> Iterator[tuple[Keys, npt.NDArray[np.uint8]]]:
        for at in range(0, len(keys), 64):
            part = keys[at : at + 64]
            yield part, payloads_for(part, adapter.payload_bytes, version)

    adapter.bulk_load(batches(), len(keys))


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in threads, and raise what the first failing one raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def in_child(question: Callable[[], bool]) -> bool:
    """Answer a question in a forked process; an error or a crash there is a no."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads: that engines have some is the point here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        answer = False
        try:
            answer = question()
        finally:
            os._exit(0 if answer else 1)
    return os.waitpid(child, 0)[1] == 0
