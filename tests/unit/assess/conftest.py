"""What is learnt of a log is learnt once for all tests: they ask many questions of a few logs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from bandana_kv.assess import run
from bandana_kv.assess.gain import Learnt
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.plan.choose import Subject


class _Once(Learnt):
    points = functools.cache(Learnt.points)  # type: ignore[assignment]
    gained = functools.cache(Learnt.gained)  # type: ignore[assignment]


def _named(log: AccessLog) -> str:
    digest = hashlib.sha256(log.offsets.tobytes())
    digest.update(log.ids.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session", autouse=True)
def learnt_once() -> Iterator[None]:
    known: dict[Any, Learnt] = {}

    def learn(subject: Subject, judge: AccessLog, parts: Any = None) -> Learnt:
        shape = (subject.name, subject.rows, subject.row_bytes, subject.rows_per_block)
        key = (*shape, subject.seed, _named(subject.log), _named(judge))
        if parts is not None:
            return Learnt(subject, judge, parts)
        if key not in known:
            known[key] = _Once(subject, judge)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Learnt", learn)
        yield
