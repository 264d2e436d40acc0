"""A path -> the store there, open for serving: arguments checked, and kept for other processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy, asked_policy
from bandana_kv.device.advice import DEFAULT_DEPTH, depth_of, given_profile
from bandana_kv.device.record import DeviceProfile
from bandana_kv.errors import InputError
from bandana_kv.rows.source import Source, source_of
from bandana_kv.serve.failsafe import checked_deadline
from bandana_kv.serve.opener import Options
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.serve.versions import Versions
from bandana_kv.system.addresses import by_address
from bandana_kv.system.permission import permission_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["Fallback", "open", "open_kept", "unwatched"]

Fallback = Callable[[str, NDArray[np.int64]], NDArray[Any]]
"""A function of a table's name and ids (n,) that returns rows (n, dim)."""


@by_address()
@permission_named()
def open(
    path: str | os.PathLike[str],
    cache_bytes: int | Mapping[str, int] | None = None,
    *,
    adapter: Adapter | None = None,
    policy: Policy | None = None,
    admission: str | None = None,
    threshold: int | None = None,
    readers: int | None = None,
    profile: DeviceProfile | str | os.PathLike[str] | None = None,
    fallback: EmbeddingStore | Source | Fallback | Mapping[str, Any] | None = None,
    deadline_ms: float | None = None,
    coalesce: bool = True,
    watch_seconds: float | None = None,
) -> EmbeddingStore:
    """Open the current version of the store at `path` for serving.

    Parameters
    ----------
    path
        A directory that :func:`bandana_kv.load` made. Or the address of a cluster, such as
        ``redis://host:port,host:port/?prefix=shop``: :func:`bandana_kv.cluster.open` is called
        then, and says what it takes.
    cache_bytes
        DRAM for cached rows and their bookkeeping. One number is shared out among the
        tables where it saves most block reads, as their logs' simulations say; by the bytes of
        the rows that their logs looked up where nothing was simulated. By default what each
        table's plan says, or 64 MiB where there is none.
    adapter
        The adapter on your own handles, for a store that was loaded through one.
    policy, admission, threshold
        Override the plan for all tables, as in :func:`bandana_kv.load`.
    readers
        Threads that read; with engines that read one block after the other in a thread,
        this is the queue depth that the device sees. By default the profile's.
    profile
        What ``tools/profile_device.py`` found on this device, or the path of it. By default
        what the store was loaded with; without any, 16 reads are in flight.
    fallback
        Where rows come from whose blocks are torn, missing, unreadable or late: another open
        store with the same rows, rows by key in an engine (:mod:`bandana_kv.adapters.rows`), a
        function ``(table, ids)`` that returns (n, dim), or one of these for each table by name.
        It stays yours to close. With it there is a circuit breaker: when a device fails again
        and again, misses go to the fallback for some seconds without being read.
    deadline_ms
        How long a lookup waits for the device, over all its tables. Blocks that come later are
        answered from the fallback, whose own time comes on top, or are a DeadlineError. Reads
        then are done by other threads, some 50 us more for each lookup that misses.
    coalesce
        Read a block once for a request. False reads one block for each missed row, which
        is what a store without blocks costs: a yardstick, without a deadline.
    watch_seconds
        Look this often whether another version has become current, and
        :meth:`~EmbeddingStore.refresh` by itself. A refresh that fails is logged and tried
        again, later each time. By default only a call of `refresh` switches. A forked child
        has no watcher.

    Returns
    -------
    EmbeddingStore

    Raises
    ------
    StoreNotFoundError
        The path is mistyped, or holds no store; nothing is created.
    FormatError
        The store is damaged, or newer than this release.
    MissingExtraError
        The store's engine is not installed.
    InputError
        An option is wrong.
    ThreadError
        With `watch_seconds`, no thread could be started.

    Notes
    -----
    Cost: reads the id index once to check it (up to 5 bytes a row) and maps it; no row is read.
    Beside `cache_bytes`, the index is page cache that all processes share.
    """
    root = Path(path).absolute()
    override = asked_policy(policy, admission, threshold)
    advice = given_profile(profile)
    if readers is None:
        readers = depth_of(root, advice) if root.is_dir() else DEFAULT_DEPTH
    store = unwatched(
        root,
        None,
        cache_bytes,
        adapter=adapter,
        policy=override,
        readers=readers,
        fallback=fallback,
        deadline_ms=deadline_ms,
        coalesce=coalesce,
        watch_seconds=watch_seconds,
    )
    arguments = {
        "path": root,
        "cache_bytes": cache_bytes,
        "policy": policy,
        "admission": admission,
        "threshold": threshold,
        "readers": int(readers),
        "profile": profile,
        "fallback": fallback,
        "deadline_ms": deadline_ms,
        "coalesce": coalesce,
        "watch_seconds": watch_seconds,
    }
    try:
        store.opened_by((_opened_again, (arguments,)) if adapter is None else None, watch_seconds)
    except BaseException:
        store.close()
        raise
    return store


def unwatched(
    root: Path,
    elsewhere: Versions | None,
    cache_bytes: int | Mapping[str, int] | None,
    *,
    adapter: Adapter | None,
    policy: Policy | None,
    readers: int,
    fallback: EmbeddingStore | Source | Fallback | Mapping[str, Any] | None,
    deadline_ms: float | None,
    coalesce: bool,
    watch_seconds: float | None,
) -> EmbeddingStore:
    """Open a store that nobody watches yet, and that cannot be opened by another process.

    Parameters and errors as of :func:`open`; `policy` overrides the plan.

    Parameters
    ----------
    root
        The directory of its index.
    elsewhere
        Who says which version is current, and keeps it; None: the directory does.
    """
    if not isinstance(readers, (int, np.integer)) or readers < 1:
        raise InputError(f"readers {readers!r} is not a whole number from 1 up")
    if watch_seconds is not None and not 0 < watch_seconds < threading.TIMEOUT_MAX:
        raise InputError(f"watch_seconds {watch_seconds!r} is not a number of seconds above 0")
    deadline_ms = checked_deadline(deadline_ms)
    if deadline_ms is not None and not coalesce:
        raise InputError("coalesce=False goes without a deadline")
    source = None if fallback is None else source_of(fallback)
    options = Options(root, cache_bytes, adapter, policy, coalesce, source, elsewhere=elsewhere)
    return EmbeddingStore(options, int(readers), deadline_ms)


def open_kept(
    path: str | os.PathLike[str], version: int, *, adapter: Adapter | None = None
) -> EmbeddingStore:
    """Open one of the versions that a store keeps, to be read: without a cache.

    Raises
    ------
    BandanaError
        As :func:`open`; a FormatError where the version has gone.
    """
    root = Path(path).absolute()
    options = Options(root, 0, adapter, None, True, None, version)
    return EmbeddingStore(options, depth_of(root, None), None)


def _opened_again(arguments: dict[str, Any]) -> EmbeddingStore:
    """Open a store once more, in another process."""
    return open(**arguments)
