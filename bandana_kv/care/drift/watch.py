"""Looks at a store's traffic again and again: what it advised last, as numbers, and a hook."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from bandana_kv.care.drift.data import Advice
from bandana_kv.care.drift.stores import Recorded, advise_store
from bandana_kv.metrics import Metric, metric
from bandana_kv.progress import Progress

__all__ = ["Watch", "run_hook"]

_HOOK_SECONDS = 3600
_log = logging.getLogger("bandana_kv")


class Watch:
    """Advice on tables of a store, each time that :meth:`look` is called.

    Parameters
    ----------
    path, recordings, cache_bytes
        As for :func:`bandana_kv.care.drift.advise_store`; recordings are read anew each time.
    hook
        A command and its arguments, run where the advice is not "nothing"; see :func:`run_hook`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        recordings: Mapping[str, Recorded],
        *,
        cache_bytes: Mapping[str, int] | None = None,
        hook: Sequence[str] = (),
    ) -> None:
        self._path = path
        self._recordings = dict(recordings)
        self._cache_bytes = cache_bytes
        self._hook = list(hook)
        self._looks = 0
        self._advice: dict[str, Advice] = {}

    def look(self, progress: Progress | None = None) -> dict[str, Advice]:
        """Look once, and run the hook for each table that something should be done about.

        Raises
        ------
        BandanaError
            As :func:`bandana_kv.care.drift.advise_store`; what was advised before stays.
        """
        self._advice = advise_store(
            self._path, self._recordings, cache_bytes=self._cache_bytes, progress=progress
        )
        self._looks += 1
        for advice in self._advice.values():
            if self._hook and advice.kind != "nothing":
                run_hook(self._hook, advice)
        return self._advice

    def metrics(self) -> Iterator[Metric]:
        """Return what the last look said, as numbers."""
        yield metric("drift_looks", "counter", "Looks at the traffic.", self._looks)
        for advice in self._advice.values():
            yield from _metrics_of(advice)


def _metrics_of(advice: Advice) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: float, **labels: str) -> Metric:
        return metric(f"drift_{name}", "gauge", text, value, table=advice.table, **labels)

    yield gauge("reads_per_lookup", "Block reads per lookup, as served.", advice.reads_per_lookup)
    for bound, value in (
        ("expected", advice.predicted),
        ("low", advice.predicted_low),
        ("high", advice.predicted_high),
    ):
        if value is not None:
            text = "Block reads per lookup that the plan expected."
            yield gauge("predicted_reads_per_lookup", text, value, bound=bound)
    for kind in ("nothing", "new plan", "place part anew", "place all anew"):
        text = "1 for what is advised, 0 for the rest."
        yield gauge("advice_active", text, float(kind == advice.kind), action=kind)
    yield gauge("advised_blocks", "Blocks that the advice rewrites.", advice.blocks)
    yield gauge("advised_bytes", "Bytes that it writes.", advice.chosen.written_bytes)
    for option in advice.options:
        text = "Share of block reads that could be saved."
        yield gauge("saved_ratio", text, option.saved, action=str(option))


def run_hook(command: Sequence[str], advice: Advice) -> bool:
    """Run a command with the advice as JSON on its standard input; return whether it succeeded.

    No shell is involved. A command that fails, or takes over an hour, is logged and is no
    reason to stop looking.
    """
    try:
        done = subprocess.run(
            list(command),
            input=msgspec.json.encode(advice),
            timeout=_HOOK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _failed(advice, f"the hook cannot be run ({error})")
        return False
    if done.returncode:
        _failed(advice, f"the hook ended with {done.returncode}")
    return done.returncode == 0


def _failed(advice: Advice, why: str) -> None:
    fields = {"event": "drift_hook_failed", "table": advice.table, "why": why}
    _log.warning("table %r: %s", advice.table, why, extra=fields)
