"""A sample of a log in files that can be held: a table of some of the blocks, and its requests.

Of the blocks of a placement some are drawn, busy ones and others in proportion. What requests look
up in them is the log of a table that is so much smaller, whose cache needs that share of the DRAM:
miniature simulation (Waldspurger et al., USENIX ATC 2017), with blocks for rows. Of each request
a part is left. For what requests cost, parts of requests that were about as long are counted
together, as many as make a request of a length that the log has: each row is as busy, requests are
as long, and there are fewer of both.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import readable
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement.distributed.driver import place_log
from bandana_kv.placement.distributed.kernels import drawn
from bandana_kv.placement.distributed.log import LogInFiles, count_rows
from bandana_kv.placement.distributed.pieces import offsets_of, read_pieces, write_pieces
from bandana_kv.placement.distributed.runner import Runner, Sums
from bandana_kv.placement.distributed.shares import Share
from bandana_kv.placement.distributed.shuffle import forget
from bandana_kv.placement.randomness import salted
from bandana_kv.progress import Progress

__all__ = ["Sample", "sample", "whole"]

_TEMPLATES = 1  # says which requests' lengths are taken


class Sample(NamedTuple):
    """Part of a table, and what is looked up in it.

    Attributes
    ----------
    log : AccessLog
        What is left of requests; of those to learn from first.
    rows : int
        How many of the table's it has.
    learned_parts : int
        How many parts come first.
    left_share : float
        How many requests of the log left a part, of all.
    lengths : int64 (requests,)
        Of some requests of the log, drawn at the sample's rate: what they looked up.
    request_of_part : int64 (parts that are held out,)
        Which of them each part is counted with, of those that are held out.
    unseen_in_file_order_share : float
        Of the lookups after the first `train` of the files: those to rows that none before has
        looked up.
    """

    log: AccessLog
    rows: int
    learned_parts: int
    left_share: float
    lengths: NDArray[np.int64]
    request_of_part: NDArray[np.int64]
    unseen_in_file_order_share: float

    def split(self) -> tuple[AccessLog, AccessLog]:
        """Return the parts to learn from, and those that are held out."""
        exactly = (self.learned_parts + 0.5) / self.log.requests  # it is rounded down
        return self.log.split(train=exactly, ordered=True)


class _Parts(NamedTuple):
    """What is left of requests: which they were, what is left, what they had, who learns."""

    requests: NDArray[np.int64]
    lengths: NDArray[np.int64]
    had: NDArray[np.int64]
    learned: NDArray[np.bool_]
    ids: NDArray[np.int32]


class _Templates(NamedTuple):
    """Requests whose lengths are taken."""

    lengths: NDArray[np.int64]
    learned: NDArray[np.bool_]


_PARTS_TYPES = (np.int64, np.int64, np.int64, np.bool_, np.int32)
_TEMPLATE_TYPES = (np.int64, np.bool_)


def whole(log: LogInFiles) -> AccessLog:
    """Return all requests of a log in files, in their order; 4 bytes a lookup and 8 a request."""
    read = [share.logged() for share in log.shares]
    counts = np.concatenate([np.diff(each.offsets) for each in read])
    return AccessLog(offsets_of(counts), np.concatenate([each.ids for each in read]))


def sample(
    runner: Runner,
    log: LogInFiles,
    rows_per_block: int,
    rate: float,
    *,
    ordered: bool = False,
    parts: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sample:
    """Draw blocks, and make a log of what is looked up in them.

    The blocks are those of a placement that learns from the requests to learn from alone: what
    is held out had no say in which rows are in the sample together.

    Parameters
    ----------
    runner, log
        Who does the work, and the requests; its ``train`` says how many to learn from.
    rows_per_block
        Rows that fill a block.
    rate
        How many of the rows to draw, above 0 and below 1.
    ordered
        Files, and requests in them, are in order of time: the first are learned from, and not
        some drawn by the log's seed.
    parts, seed, progress
        As of :func:`bandana_kv.placement.distributed.place`.

    Raises
    ------
    InputError
        `rate` is out of range, or next to nothing is looked up in the sample.

    Notes
    -----
    Cost: a placement of the log, and two passes. The sample's lookups, at some 40 bytes, are held
    by this process; some 30 go through the work directory.
    """
    if not 0.0 < rate < 1.0:
        raise InputError(f"rate {rate} is not above 0 and below 1")
    in_order = _first_learned(log) if ordered else log
    placement = place_log(
        in_order, rows_per_block, runner=runner, parts=parts, seed=seed, progress=progress
    )
    lookups, _, _ = count_rows(runner, in_order)
    block_of_id = np.asarray(placement.position_of_id) // np.uint32(rows_per_block)
    of_block = np.zeros(placement.blocks, np.int64)
    np.add.at(of_block, block_of_id, lookups)
    chosen = np.zeros(placement.blocks, np.bool_)
    chosen[_balanced_blocks(of_block, rate, seed)] = True
    number_of_id = np.cumsum(chosen[block_of_id], dtype=np.int32) - 1
    number_of_id[~chosen[block_of_id]] = -1
    kept_rows = int(number_of_id.max()) + 1
    found, templates = _gathered(runner, in_order, number_of_id, kept_rows / log.rows, seed)
    if templates.learned.all() or not found.learned.any() or found.learned.all():
        raise InputError(
            f"{log.shares[0].source}: a sample of {rate:.2g} of the blocks is asked for next to "
            "nothing; draw a larger one"
        )
    unseen = _unseen_in_file_order(found, kept_rows, log)
    found = _learned_first(found, None if ordered else seed)
    learned = int(np.count_nonzero(found.learned))
    held_out = templates.lengths[~templates.learned]
    return Sample(
        AccessLog(offsets_of(found.lengths), found.ids),
        kept_rows,
        learned,
        found.requests.size / log.requests,
        templates.lengths,
        _together(found.lengths[learned:], found.had[learned:], held_out),
        unseen,
    )


def _balanced_blocks(
    lookups_of_block: NDArray[np.int64], rate: float, seed: int
) -> NDArray[np.int64]:
    """Return blocks, sorted: of each run of 1 / `rate` equally busy ones one, by its lookups.

    It is the one that brings the lookups of the sample so far nearest to `rate` times those of
    the runs so far: few blocks may have much of what is looked up.
    """
    blocks = lookups_of_block.size
    order = np.random.default_rng(seed).permutation(blocks)
    order = order[np.argsort(-lookups_of_block[order], kind="stable")]
    busy = lookups_of_block[order]
    edges = np.linspace(0, blocks, max(1, round(blocks * rate)) + 1).astype(np.int64).tolist()
    wanted = np.concatenate([np.zeros(1), np.cumsum(busy) * rate])
    taken, found = 0, []
    for first, last in pairwise(edges):
        aim = wanted[last] - taken
        # falling: the first that is not above the aim, or the one before
        at = first + int(np.searchsorted(-busy[first:last], -aim))
        near = [each for each in (at - 1, at) if first <= each < last]
        best = min(near, key=lambda each: abs(busy[each] - aim))
        taken += int(busy[best])
        found.append(best)
    return np.sort(order[found])


def _first_learned(log: LogInFiles) -> LogInFiles:
    """Return the log with its first requests to learn from, and not some that are drawn.

    Its shares are others, by the same numbers: they keep what they keep in a place of their own.
    """
    directory = tempfile.mkdtemp(prefix="in-order-", dir=log.directory)
    train = log.shares[0].train
    learned, begun = int(train * log.requests), 0
    shares: list[Share] = []
    for share in log.shares:
        count = share.last - share.first
        here = min(max(learned - begun, 0), count)
        begun += count
        for first, last, all_or_none in (
            (share.first, share.first + here, 1.0),
            (share.first + here, share.last, 0.0),
        ):
            if first < last:
                lookups = share.lookups * (last - first) // max(1, count)
                shares.append(
                    replace(share, first=first, last=last, lookups=lookups, train=all_or_none)
                )
    numbered = (
        replace(share, number=number, directory=directory) for number, share in enumerate(shares)
    )
    return replace(log, shares=tuple(numbered), directory=directory)


def _gathered(
    runner: Runner, log: LogInFiles, number_of_id: NDArray[np.int32], rate: float, seed: int
) -> tuple[_Parts, _Templates]:
    """Return what is left of the log's requests, and of some what they were."""
    name = f"sample-{uuid.uuid4().hex}"
    begins = np.cumsum([0, *(share.last - share.first for share in log.shares)])
    (written,) = runner.map_log(
        _gather,
        log.shares,
        name,
        int(rate * 2**32),
        seed,
        runner.broadcast(begins),
        runner.broadcast(number_of_id),
    )
    runner.moved.files_bytes += int(written[0])
    shares = len(log.shares)
    found = _Parts(*read_pieces(log.directory, f"{name}.parts", shares, _PARTS_TYPES))
    templates = _Templates(
        *read_pieces(log.directory, f"{name}.templates", shares, _TEMPLATE_TYPES)
    )
    forget(log.directory, name)
    return found, templates


def _gather(
    shares: Sequence[Share],
    name: str,
    below: int,
    seed: int,
    begins: NDArray[np.int64],
    number_of_id: NDArray[np.int32],
) -> Sums:
    """Write down what is left of the shares' requests; return the bytes."""
    written = np.zeros(1, np.int64)
    for share in shares:
        log = share.logged()
        begin = int(begins[share.number])
        numbers = number_of_id[log.ids]
        kept = offsets_of(numbers >= 0)[log.offsets]
        lengths, had = np.diff(kept), np.diff(log.offsets)
        learned = readable(share.learned(log.requests))
        left = np.flatnonzero(lengths)
        parts = (left + begin, lengths[left], had[left], learned[left], numbers[numbers >= 0])
        written += write_pieces(share.directory, f"{name}.parts", share.number, parts)
        salt = salted(seed + _TEMPLATES, share.number)
        taken = np.flatnonzero(drawn(share.first, log.requests, np.uint64(salt), below) & (had > 0))
        templates = (had[taken], learned[taken])
        written += write_pieces(share.directory, f"{name}.templates", share.number, templates)
    return (written,)


def _unseen_in_file_order(found: _Parts, rows: int, log: LogInFiles) -> float:
    """Return how much of what the last files look up no earlier request has looked up."""
    first = int(np.searchsorted(found.requests, int(log.shares[0].train * log.requests)))
    cut = int(found.lengths[:first].sum())
    seen = np.zeros(rows, np.bool_)
    seen[found.ids[:cut]] = True
    later = found.ids[cut:]
    return 1.0 - float(np.mean(seen[later])) if later.size else 0.0


def _learned_first(found: _Parts, seed: int | None) -> _Parts:
    """Return the same, those to learn from first; in an order that is drawn, if by a `seed`."""
    order = np.arange(found.requests.size)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    order = order[np.argsort(~found.learned[order], kind="stable")]
    lengths = found.lengths[order]
    begins, ends = (np.cumsum(found.lengths) - found.lengths)[order], np.cumsum(lengths)
    at = np.arange(found.ids.size) + np.repeat(begins - (ends - lengths), lengths)
    return _Parts(
        found.requests[order], lengths, found.had[order], found.learned[order], found.ids[at]
    )


def _together(
    lengths: NDArray[np.int64], had: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return which of the requests of `wanted` lengths each part is counted with.

    Parts of requests of one octave of lengths are shared out among those of that octave, in their
    order, by what they look up.
    """
    into = np.empty(lengths.size, np.int64)
    octaves, of_wanted = _octave(had), _octave(wanted)
    for octave in np.unique(octaves).tolist():
        parts, offered = np.flatnonzero(octaves == octave), np.flatnonzero(of_wanted == octave)
        if not offered.size:  # too few to be drawn: the next best
            offered = np.array([int(np.argmin(np.abs(of_wanted - octave)))])
        ends, edges = np.cumsum(lengths[parts]), np.cumsum(wanted[offered])
        middles = (ends - lengths[parts] / 2) * (edges[-1] / ends[-1])
        at = np.searchsorted(edges, middles, side="right")
        into[parts] = offered[np.minimum(at, offered.size - 1)]
    return into


def _octave(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.floor(np.log2(lengths)).astype(np.int64)
