"""A log without some of its rows, or with only some of its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.views import readable, refuse_masked
from bandana_kv.logs.requests import RequestLog
from bandana_kv.placement.counts import lookups_of_id
from bandana_kv.rows.files import RowSource

__all__ = [
    "KeptRows",
    "Requests",
    "kept_lookups",
    "resident_mask",
    "sampled_requests",
    "without_rows",
]


@dataclass(frozen=True)
class Requests:
    """The least that placement needs of a log."""

    offsets: NDArray[np.int64]
    ids: NDArray[Any]


@kernel
def _copy(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    chosen: NDArray[np.int64],
    new_id_of_id: NDArray[np.int32],
    new_offsets: NDArray[np.int64],
    new_ids: NDArray[np.int32],
) -> int:
    """Copy the chosen requests under new ids, without those whose new id is negative."""
    cursor = 0
    new_offsets[0] = 0
    for i in range(chosen.size):
        for at in range(offsets[chosen[i]], offsets[chosen[i] + 1]):
            new_id = new_id_of_id[ids[at]]
            if new_id >= 0:
                new_ids[cursor] = new_id
                cursor += 1
        new_offsets[i + 1] = cursor
    return cursor


def _copied(
    log: RequestLog, chosen: NDArray[np.int64], lookups: int, new_id_of_id: NDArray[np.int32]
) -> Requests:
    offsets = np.empty(chosen.size + 1, np.int64)
    ids = np.empty(lookups, np.int32)
    old_offsets = readable(np.asarray(log.offsets, np.int64))
    used = _copy(old_offsets, readable(log.ids), chosen, new_id_of_id, offsets, ids)
    return Requests(offsets, ids[:used])


def sampled_requests(log: RequestLog, rows: int, max_pins: int, seed: int) -> Requests:
    """Return requests drawn at random, in the log's order, with at most `max_pins` lookups."""
    lengths = np.diff(np.asarray(log.offsets, np.int64))
    drawn = np.random.default_rng(seed).permutation(lengths.size)
    fit = int(np.searchsorted(np.cumsum(lengths[drawn]), max_pins, side="right"))
    chosen = np.sort(drawn[:fit])
    lookups = int(lengths[chosen].sum())
    return _copied(log, chosen, lookups, np.arange(rows, dtype=np.int32))


def without_rows(log: RequestLog, keep: NDArray[np.bool_]) -> Requests:
    """Return the log of the kept rows alone, which are numbered anew in the order of their ids."""
    new_id_of_id = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
    everything = np.arange(len(log.offsets) - 1, dtype=np.int64)
    return _copied(log, everything, int(np.asarray(log.offsets)[-1]), new_id_of_id)


def kept_lookups(
    offsets: NDArray[np.int64], ids: NDArray[Any], keep: NDArray[np.bool_]
) -> Requests:
    """Return the log of some of its lookups; requests that lose all stay, empty."""
    before = np.zeros(ids.size + 1, np.int64)
    np.cumsum(keep, out=before[1:])
    return Requests(before[offsets], ids[keep])


class KeptRows(RowSource):
    """Some rows of a source, numbered anew in the order of their ids."""

    def __init__(self, source: RowSource, ids: NDArray[np.int64]) -> None:
        self.rows, self.dim, self.dtype = ids.size, source.dim, source.dtype
        self._source = source
        self._ids = ids

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        self._source.gather(self._ids[ids], out)


def resident_mask(
    resident: float | NDArray[np.bool_], log: RequestLog | None, rows: int
) -> NDArray[np.bool_]:
    """Return which rows stay in DRAM, bool (rows,): a mask as given, or the most looked-up share.

    Raises
    ------
    InputError
        Neither a share from 0 to 1 nor a mask of the table's rows; a share without a log.
    """
    refuse_masked("resident", resident)
    if isinstance(resident, np.ndarray):
        if resident.dtype != np.bool_ or resident.shape != (rows,):
            raise InputError(
                f"resident must be a share or a bool mask of shape ({rows},), "
                f"not {resident.dtype} {resident.shape}"
            )
        return resident
    if not 0.0 <= resident <= 1.0:
        raise InputError(f"resident must be a share of the rows from 0 to 1, not {resident}")
    if log is None:
        raise InputError("resident as a share needs a log that says which rows are looked up most")
    mask = np.zeros(rows, np.bool_)
    most = np.argsort(-lookups_of_id(log, rows), kind="stable")[: int(resident * rows)]
    mask[most] = True
    return mask
