"""Rows of a column of lists in Parquet and Arrow files, unpacked into a temporary file."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows.member import choose, with_keys
from bandana_kv.rows.positioned import opened
from bandana_kv.rows.staged import StagedRows
from bandana_kv.system.permission import check_permission

__all__ = ["ColumnRows"]

_BUFFER_BYTES = 1 << 20
_KEYS_AT_ONCE = 1 << 16


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet and Arrow files need pyarrow: pip install 'bandana-kv[parquet]', "
            "or save the table as .npy"
        ) from error
    return pyarrow


class _File(ABC):
    """A file of columns, open."""

    def __init__(self, schema: Any, rows: int) -> None:
        self.schema = schema
        self.rows = rows

    @abstractmethod
    def batches(self, column: str, most_rows: int) -> Iterator[Any]:
        """Yield the values of a column, some rows at a time."""


class _Parquet(_File):
    def __init__(self, file: Any) -> None:
        super().__init__(file.schema_arrow, file.metadata.num_rows)
        self._file = file

    def batches(self, column: str, most_rows: int) -> Iterator[Any]:
        # By its name a column comes with those whose names begin with it and a dot.
        at = {"columns": [column], "use_threads": False}
        for batch in self._file.iter_batches(batch_size=most_rows, **at):
            yield batch.column(batch.schema.get_field_index(column))


class _Ipc(_File):
    def __init__(self, file: Any) -> None:
        parts = range(file.num_record_batches)
        super().__init__(file.schema, sum(file.get_batch(at).num_rows for at in parts))
        self._file = file

    def batches(self, column: str, most_rows: int) -> Iterator[Any]:
        for at in range(self._file.num_record_batches):
            values = self._file.get_batch(at).column(self.schema.get_field_index(column))
            # Arrow believes what a file says of places, and ends the process where that is wrong.
            values.validate(full=True)
            for first in range(0, len(values), most_rows):
                yield values.slice(first, most_rows)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_File]:
    """Open a file by what it begins with; what it cannot be read for is one error that names it."""
    arrow = _arrow()
    with opened(path) as file:
        is_parquet = file.read(4) == b"PAR1"
    try:
        if is_parquet:
            # Read ahead, all row groups would be held in memory until the last batch is out.
            how = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
            how["page_checksum_verification"] = True
            with arrow.parquet.ParquetFile(path, **how) as opened_file:
                yield _Parquet(opened_file)
        else:
            # What is not compressed is not read for its shape, and its pages can be let go of.
            with (
                arrow.memory_map(str(path)) as source,
                arrow.ipc.open_file(source) as opened_file,
            ):
                yield _Ipc(opened_file)
    except (arrow.ArrowException, OSError, NotImplementedError, UnicodeDecodeError) as error:
        check_permission(error, path)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a complete Parquet or Arrow file ({reason})") from error


class _Form(NamedTuple):
    """How the lists of a column are."""

    dtype: np.dtype[Any]
    dim: int


class ColumnRows(StagedRows):
    """Rows of a column of lists, all of one length; and keys, of another column.

    Parameters
    ----------
    path
        Of a Parquet file, or of one of Arrow's (IPC, Feather 2).
    member
        The column, and behind a colon the one that keys are in: ``values``, ``values:user``,
        ``:user``. Without a column: the only one of lists.

    Raises
    ------
    InputError
        Missing, truncated or damaged; no such column; lists of different lengths, or of what is
        not numeric; nulls.
    MissingExtraError
        pyarrow is not installed.
    """

    def __init__(self, path: Path, member: str = "") -> None:
        self._path = path
        with _reading(path) as file:
            names = file.schema.names
            column, key = with_keys(member, names)
            self._column = choose(
                path, "column", column, names, lambda each: _shape(path, file, each)
            )
            self._key = choose(path, "column", key, names, lambda _: ()) if key else ""
            for each in {self._column, self._key} - {""}:
                if names.count(each) > 1:
                    raise InputError(f"{path}: has {names.count(each)} columns {each!r}; rename")
            label = f"{path}:{self._column}"
            form = _form(label, file, self._column)
            if form is None:
                kind = file.schema.field(self._column).type
                raise InputError(f"{label}: is of type {kind}; rows are lists of numbers")
            self._describe_staged(label, (file.rows, form.dim), form.dtype)

    def _parts(self, most_rows: int) -> Iterator[NDArray[Any]]:
        done = 0
        with _reading(self._path) as file:
            for values in file.batches(self._column, most_rows):
                yield _array(self._name, values, self.dim, done)
                done += len(values)

    def _read_keys(self) -> NDArray[Any] | None:
        if not self._key:
            return None
        arrow = _arrow()
        label = f"{self._path}:{self._key}"
        with _reading(self._path) as file:
            dtype = _key_dtype(label, arrow, file.schema.field(self._key).type)
            keys = np.empty(self.rows, dtype)
            done = 0
            for values in file.batches(self._key, _KEYS_AT_ONCE):
                if values.null_count:
                    row = done + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
                    raise InputError(f"{label}: row {row} has no key; a null is none")
                if arrow.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                keys[done : done + len(values)] = (
                    np.array(values.to_pylist(), object) if dtype.hasobject else values.to_numpy()
                )
                done += len(values)
        return keys


def _lists(kind: Any) -> Any:
    """Return the type of lists that a column is of; None: it is of none."""
    types = _arrow().types
    kind = getattr(kind, "storage_type", kind)  # tensors of a fixed shape are lists inside
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return kind
    return None


def _form(label: str, file: _File, column: str) -> _Form | None:
    lists = _lists(file.schema.field(column).type)
    if lists is None:
        return None
    types, inner = _arrow().types, lists.value_type
    is_number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
    dtype = np.dtype(inner.to_pandas_dtype() if is_number else object)
    if types.is_fixed_size_list(lists):
        return _Form(dtype, lists.list_size)
    for values in file.batches(column, 1):
        if len(values) and values.null_count:
            raise InputError(f"{label}: row 0 is null; give it a row of numbers")
        if len(values):
            return _Form(dtype, len(values[0]))
    return _Form(dtype, 0)


def _shape(path: Path, file: _File, column: str) -> tuple[int, ...]:
    form = _form(f"{path}:{column}", file, column)
    return (file.rows,) if form is None else (file.rows, form.dim)


def _array(label: str, values: Any, dim: int, first: int) -> NDArray[Any]:
    """Return lists as an array (n, dim); `first` is the number of the first of them."""
    values = getattr(values, "storage", values)
    compute = _arrow().compute
    lengths = compute.list_value_length(values).fill_null(-1).to_numpy(zero_copy_only=False)
    if (lengths != dim).any():
        row = int(np.argmax(lengths != dim))
        found = "is null" if lengths[row] < 0 else f"has {lengths[row]} numbers"
        raise InputError(f"{label}: row {first + row} {found}, and row 0 has {dim}")
    flat = values.flatten()
    if flat.null_count:
        row = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // dim
        raise InputError(f"{label}: row {first + row} holds a null; write a number")
    array: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return array.reshape(len(values), dim)


def _key_dtype(label: str, arrow: Any, kind: Any) -> np.dtype[Any]:
    """Return what keys are held as."""
    types = arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_unsigned_integer(kind):
        return np.dtype(np.uint64)
    if types.is_integer(kind):
        return np.dtype(np.int64)
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if any(is_text(kind) for is_text in (*texts, types.is_fixed_size_binary)):
        return np.dtype(object)
    raise InputError(f"{label}: is of type {kind}; keys are whole numbers, strings or bytes")
