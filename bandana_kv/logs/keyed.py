"""Logs of keys, not of ids: keys become ids, as the table's index has them, before the log is read.

A table of text goes by way of a Parquet file without a name, in which the keys are ids; everything
else that a log may have is then read as ever.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.keys import ChangedKeys, KeyIndex, build_index, checked_keys, key_kind
from bandana_kv.keys.kinds import checked_kind, words_of_kind
from bandana_kv.logs.formats import format_of, json_lines, npz, parquet
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.names import Interner
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress

__all__ = ["index_of", "read_keyed"]

Words = Callable[[Any], NDArray[np.int64]]

_FORMATS = ("npz", "parquet", "csv", "tsv", "txt", "jsonl")
_BATCH_ROWS = 1 << 16


class OwnKeys:
    """Ids of a log's own keys, where there is no table: in the order of their first appearance.

    Attributes
    ----------
    kind : str
        Of the keys.
    """

    def __init__(self, kind: str) -> None:
        self.kind = checked_kind(kind)
        self._names = Interner()

    def words_of(self, log: str, keys: Any) -> NDArray[np.uint64]:
        """Return the words that stand for keys; raises as :func:`bandana_kv.keys.checked_keys`."""
        return checked_keys(log, keys, self.kind)

    def ids_of(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the id of each key, int64 (n,); new ones get the next."""
        flat = np.ascontiguousarray(words).view(np.uint8).reshape(-1)
        ends = np.arange(len(words) + 1) * (8 * words_of_kind(self.kind))
        return self._names.numbers(flat, ends).astype(np.int64)


def index_of(keys: object, directory: Path) -> KeyIndex | ChangedKeys | OwnKeys:
    """Return an index of a table's keys, in the order of its rows; one that is made lies there.

    A kind of keys stands for the log's own.

    Raises
    ------
    InputError, IdError
        They are no keys, or some are the same; or there is no such kind.
    """
    if isinstance(keys, (KeyIndex, ChangedKeys)):
        return keys
    if isinstance(keys, str):
        return OwnKeys(keys)
    kind = key_kind("log", keys)
    path = directory / "keys"
    build_index(path, kind, checked_keys("log", keys, kind))
    return KeyIndex.open(path)


def read_keyed(
    path: Path, options: LogOptions, keys: object, bad: BadRows, progress: Progress
) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """Return what a log of keys is called, its offsets and its ids.

    Raises as :meth:`bandana_kv.AccessLog.read`; a key that the table has not is a bad row.
    """
    if path.is_dir():
        raise InputError(f"{path}: a directory is not read by keys; give each of its files")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    kind = format_of(path, dict.fromkeys(_FORMATS), options.format)
    with tempfile.TemporaryDirectory(prefix="bandana-kv-keys-") as made:
        directory = Path(made)
        index = index_of(keys, directory)

        def ids_of(given: Any) -> NDArray[np.int64]:
            return index.ids_of(index.words_of(str(path), given))

        if kind == "npz":
            return str(path), *_of_npz(path, options, ids_of, bad, progress)
        if kind == "txt":
            return str(path), *_of_lines(path, options, ids_of, index.kind, bad)
        if kind == "jsonl":
            keyed = json_lines.Keys(index.kind, ids_of)
            return str(path), *json_lines.read(path, options, bad, progress, keyed)
        staged = directory / "log.parquet"
        said = _stage(path, kind, options, ids_of, index.kind, bad, staged)
        offsets, ids = parquet.read(staged, said, bad, progress)
        return str(path), offsets, ids


def _kept(
    path: Path, ids: NDArray[np.int64], keys: Any, bad: BadRows, first: int = 0
) -> NDArray[np.bool_]:
    """Return which ids are there; the others are bad rows."""
    there = ids >= 0
    if not there.all():
        at = int((~there).argmax())
        count = int((~there).sum())
        bad.add(f"{path}: lookup {first + at}: the table has no key {keys[at]!r}", count)
    return there


# -- arrays and lines -------------------------------------------------------------------------


def _of_npz(
    path: Path, options: LogOptions, ids_of: Words, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    offsets, keys = npz.read(path, options, bad, progress)
    if keys.ndim != 1 or offsets.ndim != 1 or offsets.size == 0 or offsets[-1] != keys.size:
        raise InputError(
            f"{path}: offsets must be one-dimensional, and end with the {keys.size} ids"
        )
    ids = ids_of(keys)
    there = _kept(path, ids, keys, bad)
    if there.all():
        return offsets, ids.astype(np.int32)
    before = np.concatenate([[0], np.cumsum(there)])
    return before[offsets], ids[there].astype(np.int32)


def _of_lines(
    path: Path, options: LogOptions, ids_of: Words, kind: str, bad: BadRows
) -> tuple[NDArray[Any], NDArray[Any]]:
    parts: list[NDArray[np.int64]] = []
    ends = [0]
    for line in _lines(path):
        tokens = line.replace(options.separator or ",", " ").split()
        if not tokens:
            continue
        keys = _typed(path, tokens, kind)
        ids = ids_of(keys)
        ids = ids[_kept(path, ids, keys, bad, ends[-1])]
        parts.append(ids)
        ends.append(ends[-1] + ids.size)
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return np.array(ends, np.int64), ids.astype(np.int32)


def _lines(path: Path) -> Iterator[str]:
    import gzip

    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def _typed(path: Path, tokens: list[str], kind: str) -> list[Any]:
    if kind == "str":
        return tokens
    if kind == "bytes":
        return [each.encode() for each in tokens]
    try:
        return [int(each) for each in tokens]
    except ValueError as error:
        raise InputError(f"{path}: {error}; the table's keys are {kind}") from error


# -- tables -----------------------------------------------------------------------------------


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "logs of keys in columns need pyarrow: pip install 'bandana-kv[parquet]'"
        ) from error
    return pyarrow


def _stage(
    path: Path,
    kind: str,
    options: LogOptions,
    ids_of: Words,
    key_kind: str,
    bad: BadRows,
    staged: Path,
) -> LogOptions:
    """Write a table with ids in the place of keys; return how to read it."""
    arrow = _arrow()
    try:
        batches, names = _batches(arrow, path, kind, options, key_kind)
        column = _column(path, names, options)
        writer, row = None, 0
        for batch in batches:
            changed = _with_ids(arrow, path, batch, names, column, ids_of, bad, row)
            row += batch.num_rows
            if writer is None:
                writer = arrow.parquet.ParquetWriter(staged, changed.schema)
            writer.write_batch(changed)
        if writer is None:
            raise InputError(f"{path}: holds no rows")
        writer.close()
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as a log of keys ({reason})") from error
    return dataclasses.replace(options, format=None, separator=None, header=None, quoting=None)


def _batches(
    arrow: Any, path: Path, kind: str, options: LogOptions, key_kind: str
) -> tuple[Iterator[Any], list[str]]:
    if kind == "parquet":
        file = arrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        return file.iter_batches(batch_size=_BATCH_ROWS), list(file.schema_arrow.names)
    separator = options.separator or ("," if kind == "csv" else "\t")
    if len(separator) > 1:
        raise InputError(f"{path}: fields of a log of keys are separated by one character")
    plain = options.header is False
    quoted = kind == "csv" if options.quoting is None else options.quoting
    types = {"str": arrow.string(), "bytes": arrow.binary()}
    with arrow.input_stream(os.fspath(path), compression="detect") as stream:
        parse = arrow.csv.ParseOptions(delimiter=separator, quote_char='"' if quoted else False)
        read = arrow.csv.ReadOptions(autogenerate_column_names=plain)
        names = list(arrow.csv.open_csv(stream, read, parse).schema.names)
    named = [str(at + 1) for at in range(len(names))] if plain else names
    if plain and not options.columns and len(names) == 2:
        named = ["request", "id"]
    wanted = types.get(key_kind) or getattr(arrow, key_kind)()
    convert = arrow.csv.ConvertOptions(
        column_types={names[named.index(_column(path, named, options))]: wanted},
        strings_can_be_null=False,
    )

    def rows() -> Iterator[Any]:
        with arrow.input_stream(os.fspath(path), compression="detect") as stream:
            yield from arrow.csv.open_csv(stream, read, parse, convert)

    return rows(), named


def _column(path: Path, names: list[str], options: LogOptions) -> str:
    """Return the column with the keys."""
    wanted = (options.column("id"),) if options.named("id") else ("ids", "id")
    for name in wanted:
        if name in names:
            return name
    raise InputError(
        f"{path}: has no column {wanted[-1]!r}; its columns: {', '.join(map(repr, names))}. "
        "Say which holds the keys: columns={'id': ...}"
    )


def _with_ids(
    arrow: Any,
    path: Path,
    batch: Any,
    names: list[str],
    column: str,
    ids_of: Words,
    bad: BadRows,
    row: int,
) -> Any:
    """Return a batch with ids in the column of keys, without those that the table has not."""
    at = names.index(column)
    arrays = [batch.column(k) for k in range(len(names))]
    keys = arrays[at]
    if arrow.types.is_dictionary(keys.type):
        keys = keys.dictionary_decode()
    lists = arrow.types.is_list(keys.type) or arrow.types.is_large_list(keys.type)
    lists = lists or arrow.types.is_fixed_size_list(keys.type)
    flat = keys.flatten() if lists else keys
    if flat.null_count or (lists and keys.null_count):
        raise InputError(f"{path}: column {column!r} holds a null")
    given = flat.to_numpy(zero_copy_only=False)
    ids = ids_of(given if given.dtype.kind in "iu" else given.tolist())
    there = _kept(path, ids, given, bad, row)
    if lists:
        sizes = arrow.compute.list_value_length(keys).to_numpy(zero_copy_only=False)
        edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        edges = np.concatenate([[0], np.cumsum(there)])[edges]
        arrays[at] = arrow.LargeListArray.from_arrays(
            arrow.array(edges, arrow.int64()), arrow.array(ids[there])
        )
        return arrow.record_batch(arrays, names=names)
    arrays[at] = arrow.array(ids)
    return arrow.record_batch(arrays, names=names).filter(arrow.array(there))
