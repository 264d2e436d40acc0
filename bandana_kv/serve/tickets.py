"""What a request of an event loop is for compiled code, and how it is handed over to its loop.

Requests are handed on in chains, which are taken whole: nobody waits for anybody.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.addresses import compare_and_set, load, wake_descriptor, words_at
from bandana_kv.kernels.compile import brief, inlined, kernel
from bandana_kv.serve.words import HEAD, IDS, STATE, scratch_words

__all__ = [
    "BEGUN",
    "CLAIMED",
    "ENGINE",
    "FAILED",
    "GONE",
    "LEFT",
    "LOOP",
    "LOOP_WAKE",
    "LOOP_WORDS",
    "NEXT",
    "OUT",
    "TABLE",
    "TAKEN",
    "TICKET",
    "hand_over",
    "hand_over_as",
    "push",
    "scratch_of",
    "take",
    "take_done",
]

# Constants of kernels.

# A request's words: these, which are its *ticket*, and its scratch behind them. What follows in a
# chain; what it is of, and who is told; then, for who reads: whether blocks are claimed, how many
# reads were begun, how many have not ended, and whether one brought nothing; whether nobody wants
# it any more; and whether it was put in.
NEXT, TABLE, ENGINE, OUT, LOOP, CLAIMED, BEGUN, LEFT, FAILED, GONE, TAKEN = range(11)
TICKET = 12
# Of an event loop: the last request that is done, and the descriptor that it watches.
_DONE, LOOP_WAKE, LOOP_WORDS = range(3)


@kernel
def scratch_of(ticket_at: int) -> np.ndarray:
    """Return the scratch of a request."""
    scratch_at = ticket_at + 8 * TICKET
    ids = words_at(scratch_at, HEAD)[IDS]
    return words_at(scratch_at, scratch_words(ids))  # type: ignore[no-any-return]


@inlined
def push(words: np.ndarray, at: int, ticket_at: int) -> bool:
    """Put a ticket on top of those of ``words[at]``; return whether there were none.

    From then on it is another's.
    """
    ticket = words_at(ticket_at, TICKET)
    first = load(words, at)
    ticket[NEXT] = first
    while not compare_and_set(words, at, first, ticket_at):
        first = load(words, at)
        ticket[NEXT] = first
    empty: bool = first == 0
    return empty


@inlined
def take(words: np.ndarray, at: int) -> int:
    """Take all tickets of ``words[at]``; return the one that came first, others chained to it."""
    last = load(words, at)
    while not compare_and_set(words, at, last, 0):
        last = load(words, at)
    first = 0
    while last:
        ticket = words_at(last, TICKET)
        before = ticket[NEXT]
        ticket[NEXT] = first
        first, last = last, before
    return int(first)


@kernel
def hand_over_as(ticket_at: int, state: int) -> None:
    """Hand a request over to its loop, in a state; it is not to be touched after."""
    words_at(ticket_at + 8 * TICKET, HEAD)[STATE] = state
    loop = words_at(words_at(ticket_at, TICKET)[LOOP], LOOP_WORDS)
    wake = loop[LOOP_WAKE]  # before: the loop may be gone after
    if push(loop, _DONE, ticket_at):
        wake_descriptor(wake)


@brief
def hand_over(ticket_at: int, loop_at: int) -> None:
    """Hand a request over to its loop, which another thread has answered."""
    words_at(ticket_at, TICKET)[LOOP] = loop_at
    hand_over_as(ticket_at, 0)


@brief
def take_done(loop_at: int, first: int, found: np.ndarray) -> int:
    """Put the addresses of requests that are done into `found`, and return how many.

    `first` is 0, or what the call before left as the last of `found`: one there was no room for.
    """
    if first == 0:
        first = take(words_at(loop_at, LOOP_WORDS), _DONE)
    count, room = 0, found.size - 1
    while first and count < room:
        found[count] = first
        count += 1
        first = words_at(first, TICKET)[NEXT]
    found[room] = first
    return count
