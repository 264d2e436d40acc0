"""Machine code of serving, loaded before anybody is served.

numba loads a kernel's machine code at its first call. In the middle of a lookup that is a wait of
milliseconds, and an interrupt (Ctrl-C) that comes meanwhile can end the process. So :func:`open`
loads all that serving can need, and holds interrupts back while it does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba

from bandana_kv.codecs import halves, int4_rowwise, int8_rowwise
from bandana_kv.disk import blocks
from bandana_kv.keys import changes as keys_changes
from bandana_kv.keys import lookup as keys_lookup
from bandana_kv.serve import (
    answer,
    inflight,
    lookup,
    one_call,
    pending,
    pooling,
    tables,
    tickets,
    words,
)
from bandana_kv.system.interrupts import without_interrupts

__all__ = ["load_kernels"]

types: Any = numba.types
_word = types.int64
_words = types.int64[::1]
_bytes = types.uint8[:, ::1]
_keys = types.uint64[::1]
# Of logs, and of arrays that others have locked.
_READ_ONLY = tuple(types.Array(each, 1, "C", readonly=True) for each in (types.int64, types.int32))

# Kernels that Python calls while serving, and what with.
_KERNELS: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    *(
        (ask, (_word, _word, ids, _bytes, _word, _word))
        for ask in (one_call.ask_few, one_call.ask_many)
        for ids in (_words, types.int32[::1], *_READ_ONLY)
    ),
    (lookup.claim, (_words, _words, _words, _word)),
    (lookup.place_reads, (_words, _word, _word)),
    (answer.answer_many, (_words, _words, _words, _bytes)),
    (answer.read_missed, (_words, _words, _words, _bytes, _words, _word)),
    (answer.read_and_answer, (_words, _words, _words, _bytes, _words)),
    (answer.wait_for_others, (_words, _words, _word)),
    (answer.give_up_waiting, (_words, _words)),
    (answer.abandon, (_words, _words)),
    (answer.take_payloads, (_words, _bytes, _word)),
    (answer.part_late, (_words, _words, types.boolean[::1])),
    (answer.absent, (_words, _words, _words)),
    (answer.claim_ahead, (_words, _words, _words, _words, _words, _word)),
    (answer.deliver_ahead, (_words, _words, _bytes)),
    (tables._ask_few, (types.int64[:, ::1], _words, _words, _words)),
    (tables._ask_many, (types.int64[:, ::1], _words, _words, _words, _word)),
    (
        tables._read_and_answer,
        (types.int64[:, ::1], _words, _words, _word, types.int64[:, ::1], _words),
    ),
    *(
        (look_up, (_words, words_of_keys, _words))
        for look_up in (keys_lookup.ids_of_few, keys_lookup.ids_of_many)
        for words_of_keys in (_keys, types.Array(types.uint64, 1, "C", readonly=True))
    ),
    *(
        (look_up, (_words, types.boolean, words_of_keys, _words))
        for look_up in (keys_changes.changed_few, keys_changes.changed_many)
        for words_of_keys in (_keys, types.Array(types.uint64, 1, "C", readonly=True))
    ),
    (keys_changes.put_changes, (_words, types.boolean, _keys, _words)),
    *(
        (decode, (raw[:, ::1], types.float32[:, ::1]))
        for decode, raw in (
            (halves._few_halves, types.uint16),
            (halves._many_halves, types.uint16),
            (halves._few_uppers, types.uint16),
            (halves._many_uppers, types.uint16),
            (int8_rowwise._decode_few, types.uint8),
            (int8_rowwise._decode_many, types.uint8),
            (int4_rowwise._decode_few, types.uint8),
            (int4_rowwise._decode_many, types.uint8),
        )
    ),
    (words.lock_table, (_words, _words)),
    (words.unlock_table, (_words, _words)),
    (blocks._first_bad, (_bytes, _word, _words, _word, _word, _word, _word)),
    *(
        (pooling.lay_out_bags, (_words, _words, rows[::1], rows[:, ::1], *[_word] * 7))
        for rows in (types.float32, types.float64)
    ),
    (pooling.pool_rest, (_words, _word, _bytes)),
    (pending.put_in, (_word, _word, _word, _word, _word, _bytes)),
    (tickets.hand_over, (_word, _word)),
    (tickets.take_done, (_word, _word, _words)),
    (pending.stop, (_words,)),
    (pending.read_pending, (_words,)),
    (pending.hand_back, (_words,)),
    (inflight._forget, (_words, _keys)),
    (inflight._drop_ahead, (_words, _words, _keys)),
)


def load_kernels() -> None:
    """Load the kernels of lookups; once a process. Cost: a second, where they are compiled."""
    with without_interrupts():
        _load()


@functools.cache
def _load() -> None:
    for kernel, signature in _KERNELS:
        dispatcher: Any = kernel
        dispatcher.compile(signature)
    pooling.pool_at()
