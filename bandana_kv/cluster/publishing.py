"""Rows + plan -> a version in a cluster, whole on every copy before anybody serves it.

In this order, so that a crash at any step leaves the version before as it was:

1. the lease, and its barrier (:mod:`bandana_kv.cluster.writing`);
2. what dead loads have left is deleted (:mod:`bandana_kv.cluster.sweeping`);
3. a load as on one machine, into a directory that is thrown away, its blocks into the cluster;
4. *settled*: the copies that were asked for have everything (WAIT), or the load fails;
5. every block is read back from every copy, and checked;
6. the files of the version, as blocks; 4 and 5 of these;
7. its record, and its number on the list of whole versions; settled;
8. ``next``: processes that serve open and warm it, and say that they are ready;
9. ``current``: they switch, each within one look; settled.

Between 8 and 9 a process that dies, or hangs, delays the switch by `ready_seconds` at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from numpy.typing import NDArray

from bandana_kv.cluster import leases, records, sweeping
from bandana_kv.cluster.checking import check_copies, check_copies_of_files
from bandana_kv.cluster.files import FilesOf, read_file, write_files
from bandana_kv.cluster.reach import Tls, adapter_on, catalogue_of, place_of
from bandana_kv.cluster.writing import LEASE_S, Writer, writer_of
from bandana_kv.disk import manifest
from bandana_kv.errors import BandanaError, FormatError, InputError, LeaseLostError
from bandana_kv.load import loader
from bandana_kv.load.numbers import Numbers
from bandana_kv.progress import Progress
from bandana_kv.system.permission import permission_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.rows import KeyedRows
    from bandana_kv.cache.policy import Policy
    from bandana_kv.disk.placement import Placement
    from bandana_kv.disk.plan import Plan
    from bandana_kv.logs.access_log import AccessLog
    from bandana_kv.rows.given import Rows

__all__ = ["LoadOptions", "load"]

_LOOK_S = 0.1
_STAGING = "bandana-kv-loading-"
_log = logging.getLogger("bandana_kv")


class LoadOptions(TypedDict, total=False):
    """What :func:`bandana_kv.load` takes of how rows are placed, stored and cached."""

    store_as: str | Mapping[str, str] | None
    placement: str | Mapping[str, str | Placement]
    plan: Plan | None
    replicate: float
    spare: float
    policy: Policy | None
    admission: str | None
    threshold: int | None
    seed: int
    progress: Progress | None


@permission_named()
def load(
    address: str,
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any] | KeyedRows | Rows],
    logs: Mapping[str, AccessLog] | None = None,
    *,
    prefix: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls = None,
    local_dir: str | os.PathLike[str] | None = None,
    copies: int = 1,
    pages: int | None = None,
    keep: int = 2,
    ready_seconds: float = 60.0,
    lease_seconds: float = LEASE_S,
    **options: Unpack[LoadOptions],
) -> int:
    """Load tables into a store in a cluster, as a new version that then is the one served.

    Parameters
    ----------
    address
        ``redis://host:port,host:port/?prefix=shop``: some nodes of a cluster of the Redis
        protocol; the others are learnt from these. ``rediss`` is with TLS.
    tables, logs, options
        As for :func:`bandana_kv.load` into a directory. Tables that are not named stay as they are.
    prefix
        What the store's keys begin with; ``bandana`` if neither this nor the address says.
    user, password, tls
        As for :meth:`RespAdapter.on`. The user may do what docs/cluster.md lists for a writer.
    local_dir
        Where the index is made before it goes into the cluster, up to 30 bytes a row of it
        for the time of the load; by default where the system has its temporary files.
    copies
        How many replicas of each node must have the version before it is served. With 0, a
        primary that dies after a load may take blocks with it.
    pages
        4 KiB pages of a block, where a row does not fit one: the same for the whole store, as its
        first load says.
    keep
        How many versions stay in the cluster, the new one included. What some process still serves
        stays beside them until a later load.
    ready_seconds
        How long processes that serve may take to open and warm the version before it becomes
        current anyhow.
    lease_seconds
        After which another loader may go on where this one dies.

    Returns
    -------
    int
        The number of the new version. Numbers rise from load to load, and not by one.

    Raises
    ------
    InputError
        A table, log, option or the address is wrong.
    MissingExtraError
        redis is not installed.
    LoadInProgressError
        Another process loads into the store.
    LeaseLostError
        This process was paused, or cut off, for longer than its lease; its version is not served.
    DurabilityError
        The version is current, and not as many copies as asked for know: a fail-over may undo it.
    BlockMissingError, BlockCorruptError
        A copy has not what was written. Nothing has changed.
    AdapterError
        The cluster fails, or has not as many copies; nothing has changed.

    Notes
    -----
    Cost: as a load into a directory, the blocks through the network once for each copy, and back
    once from each.
    """
    unknown = sorted(options.keys() - LoadOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"load into a cluster has no argument {unknown[0]!r}")
    place = place_of(address, prefix, user, password, tls)
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 0:
        raise InputError(f"copies {copies!r} is not a number of replicas from 0 up")
    if not isinstance(keep, int) or keep < 1:
        raise InputError(f"keep {keep!r} is not a number of versions from 1 up")
    for name, seconds in (("ready_seconds", ready_seconds), ("lease_seconds", lease_seconds)):
        if not seconds >= 0 or (name == "lease_seconds" and not 0 < seconds < 1e6):
            raise InputError(f"{name} {seconds!r} is not a number of seconds")
    with contextlib.ExitStack() as stack:
        catalogue = stack.enter_context(contextlib.closing(catalogue_of(place)))
        writer = stack.enter_context(writer_of(catalogue, lease_seconds, copies))
        base = _base(writer)
        pages = _pages(pages, base)
        adapter = stack.enter_context(adapter_on(place, pages, copies=copies))
        root = stack.enter_context(_staging(local_dir))
        sweeping.sweep(writer, adapter, writer.base.version, keep)
        # Listed until the version is current: who has it open and warm keeps it for that.
        stack.callback(_withdraw, writer)
        sweeping.list_segment(writer)
        try:
            _put_base(base, adapter, root)
            _publish(writer, base, adapter, root, tables, logs, options)
            _await_ready(writer, ready_seconds)
            writer.check()
        except BaseException as error:
            _forget(writer, adapter, error)
            raise
        writer.switch(writer.fence)
        _log.info(
            "%s: version %d is current",
            catalogue.where,
            writer.fence,
            extra={"event": "version_published", "store": catalogue.where, "to": writer.fence},
        )
        # The new version is served; what cannot be dropped now, the next load drops.
        with contextlib.suppress(BandanaError):
            sweeping.sweep(writer, adapter, writer.fence, keep)
        return writer.fence
    raise AssertionError  # an ExitStack does not swallow errors


def _withdraw(writer: Writer) -> None:
    with contextlib.suppress(BandanaError):
        writer.catalogue.remove("next", writer.fence)


def _forget(writer: Writer, adapter: Adapter, error: BaseException) -> None:
    """Delete what a load that failed has written; a lost lease is told before what came of it."""
    try:
        sweeping.forget_segment(writer, adapter, writer.fence)
    except LeaseLostError as lost:
        if isinstance(error, BandanaError):
            raise lost from error
    except BandanaError:
        pass  # the next load finds what is listed


def _pages(asked: int | None, base: records.Record | None) -> int:
    """Return the pages of a store's blocks, which the first load decides."""
    if asked is not None and (not isinstance(asked, int) or asked < 1):
        raise InputError(f"pages {asked!r} is not a number of 4 KiB pages from 1 up")
    if base is not None and asked not in (None, base.pages):
        raise InputError(
            f"the store's blocks have {base.pages} pages, not {asked}; load into another prefix"
        )
    return asked or (1 if base is None else base.pages)


def _publish(
    writer: Writer,
    base: records.Record | None,
    adapter: Adapter,
    root: Path,
    tables: Mapping[str, Any],
    logs: Mapping[str, AccessLog] | None,
    options: LoadOptions,
) -> None:
    """Bring a version into the cluster, and see that it is whole there."""
    catalogue, version = writer.catalogue, writer.fence
    loader.load(
        root,
        tables,
        logs,
        adapter=adapter,
        numbers=Numbers(version, lambda: sweeping.announce_space(writer, version)),
        **options,
    )
    made = manifest.read_version(root, version)
    writer.check()
    adapter.settle(writer.copies)
    progress = options.get("progress") or Progress()
    check_copies(adapter, made, 1 + writer.copies, progress)
    files = _write_files(writer, adapter, root, made)
    segments = {} if base is None else base.segments
    record = records.new_record(
        version,
        made.store,
        made.identity,
        made.created,
        adapter.pages,
        tuple(made.tables),
        {**{each: segments[each] for each in made.directories - {version}}, version: files},
    )
    writer.check()
    records.put_record(catalogue, record)
    catalogue.add(sweeping.VERSIONS, version, version)
    writer.settle()


def _base(writer: Writer) -> records.Record | None:
    """Return what the version that is current is made of; None: there is none."""
    version = writer.base.version
    if not version:
        return None
    record = records.record_of(writer.catalogue, version)
    if record is None:
        raise FormatError(
            f"{writer.catalogue.where}: version {version} is current, and what it is made of is "
            "not there; load into another prefix"
        )
    return record


def _put_base(base: records.Record | None, adapter: Adapter, root: Path) -> None:
    """Put the manifest of the version that is current where a load looks for it."""
    if base is not None:
        path = manifest.manifest_path(root, base.version)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_file(adapter, base.segments[base.version], records.MANIFEST))
        manifest.read_version(root, base.version)
        manifest.point_at(root, base.version)


def _write_files(writer: Writer, adapter: Adapter, root: Path, made: manifest.Manifest) -> FilesOf:
    """Write what lies beside a version's blocks as blocks, and see that every copy has them."""
    directory = manifest.segment_path(root, made.version)
    shutil.copyfile(manifest.manifest_path(root, made.version), directory / records.MANIFEST)
    space = sweeping.announce_space(writer, made.version)
    files = write_files(adapter, space, sorted(directory.iterdir()))
    writer.check()
    adapter.settle(writer.copies)
    check_copies_of_files(adapter, files, 1 + writer.copies)
    return files


def _await_ready(writer: Writer, seconds: float) -> None:
    """Announce the version, and wait until all who serve have it open, or the time is over."""
    catalogue, version = writer.catalogue, writer.fence
    writer.check()
    catalogue.add("next", version, version)
    until = time.monotonic() + seconds
    while waited_for := leases.living(catalogue).keys() - leases.ready(catalogue, version):
        if time.monotonic() > until:
            _log.warning(
                "%s: version %d becomes current, and %d processes are not ready for it (%s)",
                catalogue.where,
                version,
                len(waited_for),
                ", ".join(sorted(waited_for)[:3]),
                extra={"event": "readers_not_ready", "readers": len(waited_for)},
            )
            return
        writer.check()
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def _staging(local_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Give an empty directory, removed at the end; and remove those of loads that died."""
    above = Path(tempfile.gettempdir() if local_dir is None else local_dir).absolute()
    made = [path for path in (above, *above.parents) if not path.exists()]
    above.mkdir(parents=True, exist_ok=True)
    _remove_dead(above)
    path = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{os.getuid()}-", dir=above))
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(handle)
        shutil.rmtree(path, ignore_errors=True)
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _remove_dead(above: Path) -> None:
    for path in above.glob(f"{_STAGING}{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Between its making and its locking it has nothing in it.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if any(path.iterdir()):
                    shutil.rmtree(path)
            finally:
                os.close(handle)
