"""AccessLog: which ids each request looked up, as two arrays."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.check import MOST_ID, as_ids, as_offsets, check_log
from bandana_kv.logs.formats.growable import Growing
from bandana_kv.logs.keyed import read_keyed
from bandana_kv.logs.log_files import read_arrays, write_arrays
from bandana_kv.logs.neighbourhoods import read_batches
from bandana_kv.logs.options import LogOptions
from bandana_kv.logs.requests import copy_requests
from bandana_kv.progress import Progress

__all__ = ["AccessLog"]

_log = logging.getLogger("bandana_kv")


@dataclass(frozen=True, eq=False, repr=False)
class AccessLog:
    """The requests that one embedding table got, in order.

    Request `r` looked up ``ids[offsets[r]:offsets[r + 1]]``. A request may be empty, and
    may look up an id more than once.

    Parameters
    ----------
    offsets
        int64 (requests + 1,), from 0 to the number of lookups, non-decreasing.
    ids
        int32, uint32 or int64 (lookups,), from 0 to 2**31 - 1; other integers are converted.
    source
        What messages call this log: the path that it was read from.
    skipped_rows
        Bad rows that :meth:`read` left out, as ``bad_rows="skip"`` asked for.

    Raises
    ------
    InputError
        Not one-dimensional arrays of integers. What they hold is checked by
        :meth:`validate`, and by :meth:`read`.

    Notes
    -----
    Both arrays are kept as read-only views; arrays of the types above are not copied, and
    may be memory-mapped.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[Any]
    source: str = field(default="access log", kw_only=True)
    skipped_rows: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", as_offsets(self.offsets, self.source))
        object.__setattr__(self, "ids", as_ids(self.ids, self.source))
        if self.offsets.size == 0:
            raise InputError(f"{self.source}: offsets is empty; it begins with 0")

    def __len__(self) -> int:
        return self.requests

    def __repr__(self) -> str:
        return f"<AccessLog of {self.requests} requests, {self.lookups} lookups>"

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.offsets.size - 1

    @property
    def lookups(self) -> int:
        """Number of lookups, repeated ones included."""
        return self.ids.size

    @cached_property
    def rows(self) -> int:
        """Largest id + 1: the rows that a table for this log has at least.

        Cost: one pass over the ids, the first time; none for a log that was read.
        """
        return int(self.ids.max()) + 1 if self.ids.size else 0

    def request(self, number: int) -> NDArray[Any]:
        """Return the ids of one request, a view.

        Parameters
        ----------
        number
            Of the request, from 0.

        Raises
        ------
        InputError
            There is no such request.
        """
        if not 0 <= number < self.requests:
            raise InputError(f"{self.source}: no request {number}; there are {self.requests}")
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    @classmethod
    def from_requests(cls, requests: Iterable[Sequence[int] | NDArray[Any]]) -> Self:
        """Make a log of requests that are at hand, each a sequence of ids.

        Parameters
        ----------
        requests
            Consumed once; only the ids are kept, as int32.

        Raises
        ------
        InputError
            An id is not a whole number from 0 to 2**31 - 1; the message names the request.
        """
        ids, ends = Growing(np.int32), Growing(np.int64)
        ends.append(np.zeros(1, np.int64))
        for number, request in enumerate(requests):
            refuse_masked(f"request {number}", request)
            values = np.asarray(request)
            if values.size == 0:
                values = values.astype(np.int32)
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise InputError(
                    f"request {number} is not a sequence of ids, which are whole numbers"
                )
            if values.size and not 0 <= int(values.min()) <= int(values.max()) <= MOST_ID:
                wrong = values[(values < 0) | (values > MOST_ID)][0]
                raise InputError(
                    f"request {number} looks up id {wrong}; ids go from 0 to {MOST_ID}"
                )
            ids.append(values)
            ends.append(np.array([ids.size]))
        return cls(ends.done(), ids.done())

    @classmethod
    def from_neighbors(
        cls,
        batches: Iterable[Any],
        *,
        epochs: int = 1,
        node_type: str | None = None,
        whole: bool = False,
        take: Callable[[Any], Any] | None = None,
    ) -> Self:
        """Make a log of sampled neighbourhoods: a request is a node and what was sampled for it.

        Parameters
        ----------
        batches
            PyG's loader, or other batches of node ids: as `n_id` with `edge_index`, or bare.
        epochs
            How often to go through them; each time others are sampled.
        node_type
            Whose ids, where nodes are of several types.
        whole
            A request is a batch, which is what training asks for at once. Without edges it is, too.
        take
            Gets at the ids of a batch of another kind.

        Raises
        ------
        InputError
            A batch has no node ids, or `batches` cannot be gone through again.

        Notes
        -----
        Cost: one sort of each batch's edges; 8 bytes an id, and 8 a request.
        """
        log = cls(*read_batches(batches, epochs, node_type, take, whole), source="neighbourhoods")
        log.validate()
        return log

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        options: LogOptions | None = None,
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        table: str | None = None,
        separator: str | None = None,
        header: bool | None = None,
        quoting: bool | None = None,
        missing: Sequence[str] | None = None,
        bad_rows: str | None = None,
        keys: object = None,
        progress: Progress | None = None,
    ) -> AccessLog:
        """Read a log from a file, a directory of files, or from what a store recorded.

        Parameters
        ----------
        path
            ``.npz``: arrays `offsets` and `ids`; memory-mapped where stored uncompressed.
            ``.parquet``: a column of lists (`ids`, `id`, or the only one), or interactions.
            ``.csv``, ``.tsv``: interactions, with a header.
            ``.txt``: one request a line, ids separated by blanks or commas; blank lines
            are skipped. ``.jsonl``, ``.ndjson``: an object a line, with a list `ids`, or of an
            interaction; or a list of ids. Text also with ``.gz`` behind. A directory: of
            Parquet files, or what :meth:`bandana_kv.EmbeddingStore.record` wrote.
        options
            How to read it where that is not said by the suffix.
        format, columns, table, separator, header, quoting, missing, bad_rows
            As in :class:`bandana_kv.logs.LogOptions`, and instead of what `options` says.
        keys
            The log has keys where others have ids; what is returned has ids. Of a table: what
            :class:`bandana_kv.Rows` was given, a :class:`bandana_kv.keys.KeyIndex`, or what
            ``store.key_changes(table)`` gives; a key that it has not is a bad row. Without one the
            kind, ``"str"`` say: keys are numbered as they appear. In text keys of bytes are UTF-8.
        progress
            Told of the bytes or rows read.

        Returns
        -------
        AccessLog
            Checked: what :meth:`validate` demands holds.

        Raises
        ------
        InputError
            The file is missing, damaged, of an unknown format, holds no lookups, or
            anything in it is not what it should be; the message says where.
        MissingExtraError
            A Parquet file, and pyarrow is not installed.

        Notes
        -----
        Interactions are one (request, id, time) a row. Requests are numbers or text, and need
        not be in adjacent rows. If there is a time (a number or a date), requests come in the
        order of their first time and ids inside a request by time; else both come in the order
        of first appearance.

        Cost: one pass over the file. Memory: none for arrays that are mapped; 4 bytes a
        lookup and 8 a request for text; up to 40 a lookup while interactions are sorted.
        """
        said = (options or LogOptions()).but(
            format=format,
            columns=columns,
            table=table,
            separator=separator,
            header=header,
            quoting=quoting,
            missing=missing,
            bad_rows=bad_rows,
        )
        path, bad = Path(path), BadRows(said.bad_rows == "skip")
        if keys is None:
            source, offsets, ids = read_arrays(path, said, bad, progress or Progress())
        else:
            source, offsets, ids = read_keyed(path, said, keys, bad, progress or Progress())
        log = cls(offsets, ids, source=source, skipped_rows=bad.count)
        log.validate()
        of_which = f" ({bad.count} bad rows were skipped; the first: {bad.first})"
        if log.lookups == 0:
            empty = f"{path}: holds no requests that look anything up"
            raise InputError(empty + (of_which if bad.count else ""))
        if bad.count:
            _log.warning(
                "%s: read without %d bad rows; the first: %s",
                path,
                bad.count,
                bad.first,
                extra={"event": "bad_rows_skipped", "path": str(path), "rows": bad.count},
            )
        return log

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the log to a file; an existing one is replaced in one step.

        Parameters
        ----------
        path
            ``.npz``: uncompressed, so that :meth:`read` maps it; numpy.load reads it too.
            ``.parquet``: one row a request, a column `ids` of lists.

        Raises
        ------
        InputError
            Another suffix, or the directory is missing or not writable.
        DiskFullError
            No room; what was there before is unharmed.
        MissingExtraError
            A Parquet file, and pyarrow is not installed.
        """
        write_arrays(Path(path), self.offsets, self.ids)

    def split(
        self, train: float = 0.7, ordered: bool = False, seed: int = 0
    ) -> tuple[AccessLog, AccessLog]:
        """Split the requests into ones to learn from and ones to hold out.

        Parameters
        ----------
        train
            Share of the requests to learn from: the first ``int(train * requests)``.
        ordered
            True: first in the log, for a log in time order. False: first in
            ``numpy.random.default_rng(seed).permutation(requests)``; both parts keep the
            permuted order.
        seed
            Of the permutation.

        Returns
        -------
        tuple of AccessLog
            To learn from, and held out. Either may have no requests.

        Raises
        ------
        InputError
            `train` is not between 0 and 1.

        Notes
        -----
        Cost: an ordered split shares the ids of this log; the other copies them.
        """
        if not 0.0 <= train <= 1.0:
            raise InputError(f"train is a share of the requests from 0 to 1, not {train}")
        first = int(train * self.requests)
        if ordered:
            cut = self.offsets[first]
            return (
                AccessLog(self.offsets[: first + 1], self.ids[:cut], source=self.source),
                AccessLog(self.offsets[first:] - cut, self.ids[cut:], source=self.source),
            )
        order = np.random.default_rng(seed).permutation(self.requests)
        return self.select(order[:first]), self.select(order[first:])

    def select(self, request_numbers: Sequence[int] | NDArray[np.integer[Any]]) -> AccessLog:
        """Return a log of some of the requests, in the order asked for.

        Parameters
        ----------
        request_numbers
            Integers (n,), each from 0; repeats are fine.

        Raises
        ------
        InputError
            There is no request of a number.

        Notes
        -----
        Cost: copies the ids, compiled, without the GIL.
        """
        refuse_masked("request numbers", request_numbers)
        numbers = np.asarray(request_numbers)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise InputError("request numbers must be a sequence of whole numbers")
        wrong = np.flatnonzero((numbers < 0) | (numbers >= self.requests))
        if wrong.size:
            raise InputError(
                f"{self.source}: no request {numbers[wrong[0]]}; there are {self.requests}"
            )
        numbers = numbers.astype(np.int64, copy=False)
        ends = np.zeros(numbers.size + 1, np.int64)
        np.cumsum(self.offsets[numbers + 1] - self.offsets[numbers], out=ends[1:])
        ids = np.empty(ends[-1], self.ids.dtype)
        copy_requests(self.offsets, self.ids, numbers, ends, ids)
        return AccessLog(ends, ids, source=self.source)

    def validate(self, rows: int | None = None) -> None:
        """Check that the arrays are an access log, and that a table has all its ids.

        Parameters
        ----------
        rows
            Of the table; None to check the log alone.

        Raises
        ------
        InputError
            Offsets do not start at 0, decrease, or do not end at the number of ids; an id
            is negative, beyond the table, or beyond 2**31 - 1. Names the file, the request
            and the id.

        Notes
        -----
        Cost: one pass over both arrays, without the GIL.
        """
        most = check_log(self.offsets, self.ids, rows, self.source)
        # fills the cached property, which a frozen class does not stop
        self.__dict__["rows"] = most + 1
