"""One request, one compiled call: what DRAM holds, and where the engine allows it, the rest too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import words_at
from bandana_kv.kernels.compile import brief, entry, kernel
from bandana_kv.kernels.gil import give_gil_away, take_gil_back
from bandana_kv.serve.answer import read_missed
from bandana_kv.serve.inflight import WORDS as FLIGHT_WORDS
from bandana_kv.serve.lookup import look_up_request
from bandana_kv.serve.words import (
    FLIGHTS,
    MISSED,
    NO_MEMORY,
    NOT_CLAIMED,
    SEEN_EPOCH,
    STATE,
    TABLE_WORDS,
    scratch_words,
)

__all__ = ["ask_few", "ask_few_of", "ask_many"]

types: Any = numba.types

Ids = NDArray[np.integer[Any]]
Rows = NDArray[np.uint8]


@kernel
def _read(table: np.ndarray, scratch: np.ndarray, out: np.ndarray, engine_at: int) -> int:
    """Do :func:`read_missed`, and raise nothing."""
    in_flight, engine = words_at(table[FLIGHTS], FLIGHT_WORDS), words_at(engine_at, 1)
    try:
        return read_missed(table, in_flight, scratch, out, engine, scratch[MISSED])
    except Exception:
        return NO_MEMORY


@brief
def ask_few(
    table_at: int, scratch_at: int, ids: np.ndarray, out: np.ndarray, engine_at: int, epoch: int
) -> int:
    """Answer a small request; the GIL is given away only where something must be read.

    Parameters
    ----------
    table_at, scratch_at
        Where the words are that :mod:`bandana_kv.serve.words` tells of.
    ids
        int64 or int32 (n,); -1 - i is returned where the i-th is the first that is out of range.
    out
        uint8 (n, row_bytes), written.
    engine_at
        Where the words of :meth:`bandana_kv.adapters.contract.Adapter.standing` are; 0: read
        nothing.
    epoch
        EPOCH of the table before the engine was asked for those.

    Returns
    -------
    int
        How many rows are still to be answered; then STATE says how far the request has come:
        NOT_CLAIMED, NO_MEMORY, or as :func:`read_missed`. Or -1 - i. Or BUSY: others change the
        table just now; ask :func:`ask_many`.
    """
    table = words_at(table_at, TABLE_WORDS)
    scratch = words_at(scratch_at, scratch_words(ids.size))
    missed = look_up_request(table, scratch, ids, out, False)
    if missed <= 0:
        return missed
    scratch[STATE] = NOT_CLAIMED
    if engine_at and scratch[SEEN_EPOCH] == epoch:
        held = give_gil_away()
        scratch[STATE] = _read(table, scratch, out, engine_at)
        take_gil_back(held)
    return missed if scratch[STATE] else 0


@functools.cache
def ask_few_of(dtype: np.dtype[Any]) -> Callable[[int, int, Ids, Rows, int, int], int]:
    """Return :func:`ask_few` for ids of int64 or int32 alone."""
    word = types.int64
    ids = word[::1] if dtype == np.int64 else types.int32[::1]
    return entry(ask_few, (word, word, ids, types.uint8[:, ::1], word, word))


@kernel
def ask_many(
    table_at: int, scratch_at: int, ids: np.ndarray, out: np.ndarray, engine_at: int, epoch: int
) -> int:
    """Do the same without the GIL, and wait for the table's lock."""
    table = words_at(table_at, TABLE_WORDS)
    scratch = words_at(scratch_at, scratch_words(ids.size))
    missed = look_up_request(table, scratch, ids, out, True)
    if missed <= 0:
        return missed
    scratch[STATE] = NOT_CLAIMED
    if engine_at and scratch[SEEN_EPOCH] == epoch:
        scratch[STATE] = _read(table, scratch, out, engine_at)
    return missed if scratch[STATE] else 0
