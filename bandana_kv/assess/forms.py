"""What storing rows in fewer bytes would gain, in as much DRAM, and what it would lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bandana_kv.assess.gain import Learnt
from bandana_kv.assess.table import Block
from bandana_kv.assess.table_data import StoredForm, TableReport
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.state import capacity_for
from bandana_kv.codecs import codec_named
from bandana_kv.errors import InputError
from bandana_kv.load.stored_rows import StoredRows
from bandana_kv.plan.choose import choose
from bandana_kv.plan.points import judged
from bandana_kv.rows.files import open_rows
from bandana_kv.simulate.replay import run

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from bandana_kv.disk.manifest import Loss

__all__ = ["check_floats", "loss_of", "with_forms"]

_FLOAT_BYTES = 4
_SAMPLED_ROWS = 100_000


def loss_of(
    name: str, rows: str | os.PathLike[str] | NDArray[np.generic], codec: str
) -> Loss | None:
    """Return what a codec costs a sample of rows, (n, dim): of more than 100,000, every so many.

    Raises
    ------
    InputError
        They are no rows of floats, or the codec cannot hold one, which is named.
    """
    with open_rows(name, rows) as source:
        stored = StoredRows(f"sample of {name!r}", source, codec_named(codec))
        ids = np.arange(0, source.rows, -(-source.rows // _SAMPLED_ROWS), dtype=np.int64)
        stored.gather(ids, np.empty((ids.size, stored.row_bytes), np.uint8))
        return stored.loss


def check_floats(table: str, row_bytes: int) -> None:
    """Raise InputError if rows are no whole number of float32."""
    if row_bytes % _FLOAT_BYTES:
        raise InputError(
            f"table {table!r}: rows of {row_bytes} bytes are no rows of float32, which other forms "
            "are compared with"
        )


def with_forms(
    found: TableReport,
    learnt: Learnt,
    cache_bytes: int,
    codecs: Sequence[str],
    sample: str | None,
) -> TableReport:
    """Return a report with what each codec would do for a table of float32.

    Parameters
    ----------
    cache_bytes
        DRAM for the cache of each.
    sample
        Rows of the table, of which to say what they lose.

    Raises
    ------
    InputError
        The sample's rows are no floats, or a codec cannot hold one.
    """
    forms = tuple(_form_of(found, learnt, cache_bytes, codec, sample) for codec in codecs)
    return msgspec.structs.replace(found, forms=forms) if forms else found


def _form_of(
    found: TableReport, learnt: Learnt, cache_bytes: int, codec: str, sample: str | None
) -> StoredForm:
    subject = learnt.subject
    row_bytes = codec_named(codec).row_bytes(subject.row_bytes // _FLOAT_BYTES)
    per_block = Block.of(subject.name, row_bytes).rows
    each = dataclasses.replace(
        subject, name=f"{subject.name} as {codec}", row_bytes=row_bytes, rows_per_block=per_block
    )
    room = partial(_rows_in, cache_bytes, row_bytes, subject.rows)
    choice = choose(each, room)
    placement = each.placed(each.log, choice.placement, choice.resident_rows)
    stream, layout = judged(each.log, learnt.judge, placement)
    rows = room(choice.policy)
    reads = run(stream, layout, choice.policy, rows).block_reads / learnt.requests
    before = found.reads_per_request.plan
    gain = before / reads if reads else max(1.0, before)
    loss = None if sample is None else loss_of(subject.name, sample, codec)
    return StoredForm(codec, row_bytes, per_block, rows, reads, gain, loss)


def _rows_in(cache_bytes: int, row_bytes: int, rows: int, policy: Policy) -> int:
    return capacity_for(policy, cache_bytes, row_bytes, rows)
