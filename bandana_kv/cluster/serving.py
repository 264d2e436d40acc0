"""A store in a cluster, open for serving: its leases, and what it looks at once a second."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandana_kv.cache.policy import Policy, asked_policy
from bandana_kv.cluster import epochs, leases, records
from bandana_kv.cluster.local_files import hold_fetched
from bandana_kv.cluster.reach import Place, Tls, adapter_on, catalogue_of, place_of
from bandana_kv.cluster.renewal import Renewal
from bandana_kv.cluster.sweeping import VERSIONS
from bandana_kv.device.advice import DEFAULT_DEPTH
from bandana_kv.disk import manifest
from bandana_kv.errors import (
    BandanaError,
    FormatError,
    InputError,
    StoreChangedError,
    StoreNotFoundError,
)
from bandana_kv.serve.opening import Fallback, unwatched
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.system.permission import permission_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.resp_catalogue import Catalogue
    from bandana_kv.rows.source import Source

__all__ = ["open"]

WATCH_S = 1.0
LEASE_S = 30.0
_TRIES = 5


class InCluster:
    """The versions of a store in a cluster, as one process follows them.

    Parameters
    ----------
    catalogue, adapter
        Closed with this.
    local_dir
        Where indices are fetched to.
    lease_s
        How long a lease on a version lasts unless it is renewed.

    Attributes
    ----------
    root : Path
        Of the store's index on this machine.
    adapter : Adapter

    Raises
    ------
    StoreNotFoundError
        There is no store.
    """

    def __init__(
        self, catalogue: Catalogue, adapter: Adapter, local_dir: Path, lease_s: float
    ) -> None:
        self._catalogue = catalogue
        self.adapter = adapter
        self._lease_s = lease_s
        self._epoch = epochs.NONE
        self._store = self._record(self.current()).store
        self.root = local_dir / self._store
        self._begin()

    def _begin(self) -> None:
        self._who = leases.member_id()
        self._held: Counter[int] = Counter()
        self._changing = threading.Lock()
        self._renewal: Renewal | None = None

    def current(self) -> int:
        """Return the version to serve: that of the latest epoch that this process has seen."""
        found = epochs.now(self._catalogue)
        if found.since > self._epoch.since:
            self._epoch = found
        if not self._epoch.version:
            raise StoreNotFoundError(
                f"{self._catalogue.where} holds no store; make one with bandana_kv.load"
            )
        return self._epoch.version

    def hold(self, number: int | None, resources: contextlib.ExitStack) -> manifest.Manifest:
        """Take a lease on a version, and fetch its files if they are not here."""
        version = 0
        for _ in range(_TRIES):
            version = self.current() if number is None else number
            with contextlib.ExitStack() as stack:
                self._take(version)
                stack.callback(self._let_go, version)
                # Only now: whoever deletes it takes it off the list first.
                if not self._catalogue.members(VERSIONS, version, version):
                    continue
                found = hold_fetched(self.root, self._record(version), self.adapter, stack)
                resources.push(stack.pop_all())
                return found
        raise FormatError(f"{self._catalogue.where}: version {version} is not there any more")

    def coming(self) -> int | None:
        """Return the version of the writer who has the lease, once it is whole."""
        announced = self._catalogue.members("next")
        newest = int(announced[-1]) if announced else 0
        # One that another writer has outdone will not be current.
        if newest <= self._epoch.since or newest != epochs.now(self._catalogue).fence:
            return None
        return newest

    def prepared(self, number: int) -> None:
        """Report the version that is coming ready."""
        leases.report_ready(self._catalogue, number, self._who)

    def after_fork_in_child(self) -> None:
        """Be a process of its own: with leases of its own on what the parent had."""
        held = self._held
        self._begin()
        self._held = held
        if held and self._lease_s:
            self._renewal = Renewal(self._renew, self._lease_s, self._catalogue.where, at_once=True)

    def close(self) -> None:
        """Give all leases back, and let go of the cluster."""
        with self._changing:
            renewal, self._renewal = self._renewal, None
            self._lease_s = 0  # nothing is renewed any more
        self._catalogue.hurry()
        if renewal is not None:
            renewal.stop()
        with contextlib.suppress(BandanaError):
            for version in list(self._held):
                leases.give_back(self._catalogue, version, self._who)
        self._catalogue.close()
        self.adapter.close()

    def _record(self, version: int) -> records.Record:
        found = records.record_of(self._catalogue, version)
        if found is None:
            raise FormatError(
                f"{self._catalogue.where}: version {version} is not there any more; open it again"
            )
        if getattr(self, "_store", found.store) != found.store:
            raise StoreChangedError(
                f"{self._catalogue.where}: the store that was opened here is not here any more; "
                "what is served goes on being served. Close it and open the address again"
            )
        return found

    def _take(self, version: int) -> None:
        with self._changing:
            self._held[version] += 1
            if self._renewal is None and self._lease_s:
                self._renewal = Renewal(self._renew, self._lease_s, self._catalogue.where)
        try:
            leases.take(self._catalogue, version, self._who, self._lease_s)
        except BaseException:
            self._let_go(version)
            raise

    def _let_go(self, version: int) -> None:
        with self._changing:
            self._held[version] -= 1
            last = self._held[version] <= 0
            if last:
                del self._held[version]
        if last:
            with contextlib.suppress(BandanaError):  # else it runs out
                leases.give_back(self._catalogue, version, self._who)

    def _renew(self) -> None:
        for version in list(self._held):
            leases.take(self._catalogue, version, self._who, self._lease_s)
            if version not in self._held:  # let go meanwhile
                leases.give_back(self._catalogue, version, self._who)


@permission_named()
def open(
    address: str,
    cache_bytes: int | Mapping[str, int] | None = None,
    *,
    local_dir: str | os.PathLike[str],
    prefix: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls = None,
    policy: Policy | None = None,
    admission: str | None = None,
    threshold: int | None = None,
    readers: int | None = None,
    fallback: EmbeddingStore | Source | Fallback | Mapping[str, Any] | None = None,
    deadline_ms: float | None = None,
    coalesce: bool = True,
    watch_seconds: float | None = WATCH_S,
    lease_seconds: float = LEASE_S,
) -> EmbeddingStore:
    """Open the current version of a store in a cluster for serving.

    Parameters
    ----------
    address, prefix, user, password, tls
        As for :func:`bandana_kv.cluster.load`. The user may do what docs/cluster.md lists for a
        reader: it cannot change a block.
    cache_bytes, policy, admission, threshold, readers, fallback, deadline_ms, coalesce
        As for a store in a directory.
    local_dir
        Where the index is fetched to, once a version: 3 to 4 bytes a row, 8 to 16 more a key.
        Processes of one machine should share it; what none of them serves is removed. Nothing in
        it needs a backup.
    watch_seconds
        How often to look which version is current, or about to be, and to switch.
    lease_seconds
        After which nothing keeps the version that a process serves where it died. Clocks of all
        machines may differ by half of it.

    Returns
    -------
    EmbeddingStore
        Its rows cannot be updated: see docs/decisions/0019.

    Raises
    ------
    StoreNotFoundError
        The cluster has no store of that prefix; nothing is created.
    MissingExtraError
        redis is not installed.
    AdapterError
        No node answers, or the login is refused.
    InputError
        An option is wrong.
    DiskFullError
        There is no room for the index.

    Notes
    -----
    Cost: the index through the network, unless another process of the machine has fetched it; then
    as for a directory. Meanwhile two or three small commands a second.
    """
    place = place_of(address, prefix, user, password, tls)
    if watch_seconds is None or not 0 < watch_seconds < threading.TIMEOUT_MAX:
        raise InputError(f"watch_seconds {watch_seconds!r} is not a number of seconds above 0")
    if not 0 < lease_seconds < 1e6:
        raise InputError(f"lease_seconds {lease_seconds!r} is not a number of seconds above 0")
    override = asked_policy(policy, admission, threshold)
    versions = _in_cluster(place, Path(local_dir).absolute(), lease_seconds)
    try:
        store = unwatched(
            versions.root,
            versions,
            cache_bytes,
            adapter=versions.adapter,
            policy=override,
            readers=DEFAULT_DEPTH if readers is None else readers,
            fallback=fallback,
            deadline_ms=deadline_ms,
            coalesce=coalesce,
            watch_seconds=watch_seconds,
        )
    except BaseException:
        versions.close()
        raise
    arguments = {
        "address": address,
        "cache_bytes": cache_bytes,
        "local_dir": os.fspath(local_dir),
        "prefix": prefix,
        "user": user,
        "password": password,
        "tls": tls,
        "policy": policy,
        "admission": admission,
        "threshold": threshold,
        "readers": readers,
        "fallback": fallback,
        "deadline_ms": deadline_ms,
        "coalesce": coalesce,
        "watch_seconds": watch_seconds,
        "lease_seconds": lease_seconds,
    }
    try:
        store.opened_by((_opened_again, (arguments,)), watch_seconds)
    except BaseException:
        store.close()
        raise
    return store


def _in_cluster(place: Place, local_dir: Path, lease_s: float) -> InCluster:
    """Return the versions of a store; nothing stays open on an error."""
    with contextlib.ExitStack() as stack:
        catalogue = stack.enter_context(contextlib.closing(catalogue_of(place)))
        # As those of all its versions are.
        pages = record_now(catalogue).pages
        adapter = stack.enter_context(adapter_on(place, pages, read_only=True))
        found = InCluster(catalogue, adapter, local_dir, lease_s)
        stack.pop_all()
        return found
    raise AssertionError  # an ExitStack does not swallow errors


def record_now(catalogue: Catalogue) -> records.Record:
    """Return what the version that is current is made of."""
    version = 0
    for _ in range(_TRIES):
        version = epochs.now(catalogue).version
        if not version:
            raise StoreNotFoundError(
                f"{catalogue.where} holds no store; make one with bandana_kv.load"
            )
        found = records.record_of(catalogue, version)
        if found is not None:  # else another one is current by now
            return found
    raise FormatError(f"{catalogue.where}: version {version} is current, and not there")


def _opened_again(arguments: dict[str, Any]) -> EmbeddingStore:
    """Open a store once more, in another process."""
    return open(**arguments)
