"""Where a RocksDB keeps its files, as its newest options file says: not all need lie in one place.

The log of what was written last may lie elsewhere (``wal_dir``), sorted files too (``db_paths``,
``cf_paths``), and values may lie in blob files. A reader that looked into the directory alone
would see old rows, or none.
"""

from __future__ import annotations

import re
from pathlib import Path

from bandana_kv.errors import AdapterError

__all__ = ["log_directory", "missing_file", "newest_options", "refuse_blobs", "signature"]

_GATHER = (
    "a checkpoint of it has all in one directory, and so has a directory of links to its files: "
    "name that"
)


def newest_options(path: Path) -> dict[str, dict[str, str]]:
    """Return the newest options file of a database: sections, as they are headed, with options."""
    numbered = [
        (int(file.name.rpartition("-")[2]), file)
        for file in path.glob("OPTIONS-*")
        if file.name.rpartition("-")[2].isdigit()
    ]
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    if not numbered:
        return sections
    for line in max(numbered)[1].read_text(errors="surrogateescape").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip(), {})
        elif "=" in line:
            name, _, value = line.strip().partition("=")
            section[name] = re.sub(r"\\(.)", r"\1", value)
    return sections


def log_directory(path: Path) -> Path:
    """Return the directory with the log of the database at `path`, absolute.

    Raises
    ------
    AdapterError
        It is said to be elsewhere, and cannot be found there, or there is one in both places.
    """
    said = newest_options(path).get("[DBOptions]", {}).get("wal_dir", "")
    if not said or _same(Path(said), path):
        return path
    elsewhere, inside = Path(said), path / Path(said).name
    if not elsewhere.is_absolute() or not elsewhere.is_dir() or _is_of_another(elsewhere, path):
        # The database was moved or copied, and with it what was in its directory.
        found = [each for each in (path, inside) if _has_log(each)]
    else:
        found = [each for each in (path, elsewhere) if _has_log(each)]
        if inside not in (path, elsewhere) and not _same(inside, elsewhere) and _has_log(inside):
            found.append(inside)
        if found == [elsewhere] and _is_checkpoint(path):
            return path  # that is the log of the database that it was made of
    if len(found) == 1:
        return found[0]
    if not found and _is_checkpoint(path):
        return path
    what = "is not there" if not found else f"is also in {found[0]}"
    raise AdapterError(
        f"rocksdb at {path} cannot be opened: its options name {said} for its log (wal_dir), which "
        f"{what}, so that rows written last may be missing; {_GATHER}"
    )


def _has_log(directory: Path) -> bool:
    return any(directory.glob("*[0-9].log"))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.is_absolute() and one.samefile(other)
    except OSError:
        return False


def _is_of_another(elsewhere: Path, path: Path) -> bool:
    """Return whether a directory is another database, or lies in one."""
    if (elsewhere / "CURRENT").exists():
        return True
    return (elsewhere.parent / "CURRENT").exists() and not _same(elsewhere.parent, path)


def _is_checkpoint(path: Path) -> bool:
    """Return whether no database was opened here yet: it would have made these."""
    return not (path / "LOCK").exists() and not (path / "IDENTITY").exists()


def refuse_blobs(path: Path, families: tuple[str, ...]) -> None:
    """Refuse a database with values in blob files, which are opened when they are read only.

    Raises
    ------
    AdapterError
        A family has such.
    """
    blobs = sorted(path.glob("*.blob"))
    if not blobs:
        return
    options = newest_options(path)
    for family in families:
        if options.get(f'[CFOptions "{family}"]', {}).get("enable_blob_files") == "true":
            raise AdapterError(
                f"rocksdb at {path} cannot be read: values of column family {family!r} lie in blob "
                f"files, such as {blobs[0].name}; turn enable_blob_files off and compact it, or "
                "name a function as the source"
            )


def missing_file(path: Path, error: Exception) -> str | None:
    """Return what to say of an error that names a file which the database's directory has not."""
    named = re.search(r"(\d+)\.(sst|blob)", str(error))
    if named is None or "no such file" not in str(error).lower() or (path / named[0]).exists():
        return None
    if named[2] == "blob":
        return f"values lie in blob files, and {named[0]} is gone; open it again"
    return (
        f"its file {named[0]} is not in its directory: it has others (db_paths, cf_paths), or was "
        f"copied in part; {_GATHER}"
    )


def signature(path: Path) -> tuple[object, ...]:
    """Return what changes whenever something is written that others can see.

    Raises
    ------
    OSError
        There is no database any more.
    """
    current = path / "CURRENT"
    manifest = path / current.read_text().strip()
    logs = sorted(log_directory(path).glob("*.log"))
    return (_stamp(current), *(_stamp(file) for file in (manifest, *logs)))


def _stamp(file: Path) -> tuple[object, ...]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (file.name,)
    return file.name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
