"""The numbers of a roll-out, for people and for whoever exports metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bandana_kv.metrics import Buckets, Metric, metric
from bandana_kv.rollout.data import SIDES, STAGES, Difference, Report, Stage
from bandana_kv.rollout.observations import Observed
from bandana_kv.rollout.stages import Stages

__all__ = ["metrics_of", "report_of"]

_COUNTERS = {
    "rescued_requests": "Requests answered by the old source because the new store failed",
    "failed_requests": "Requests that no side could answer",
    "compared_requests": "Requests that both sides answered, to be compared",
    "compared_rows": "Rows that were compared",
    "mismatched_rows": "Compared rows that differ",
    "skipped_comparisons": "Requests that were to be compared, and were not for want of room",
    "breaches": "How often the new store went beyond a limit",
}


def report_of(
    stages: Stages, observed: Observed, skipped: int, differences: tuple[Difference, ...]
) -> Report:
    """Return how a roll-out stands."""
    now, counts, why_not = stages.now, observed.counts(), stages.why_not()
    return Report(
        stage=now.stage,
        fraction=now.fraction,
        since=now.since,
        requests={side: counts.pop(f"requests_{side}") for side in SIDES},
        errors={side: counts.pop(f"errors_{side}") for side in SIDES},
        **counts,
        skipped_comparisons=skipped,
        window=observed.seen(),
        ready=not why_not,
        why_not=why_not,
        differences=differences,
        history=stages.history,
    )


def metrics_of(
    report: Report,
    latencies: tuple[Buckets, Buckets],
    transitions: Mapping[tuple[Stage, Stage], int],
) -> list[Metric]:
    """Return the metrics of a roll-out."""
    return [
        *(
            _metric(
                "stage", "gauge", "1 for the stage it is in", stage == report.stage, stage=stage
            )
            for stage in STAGES
        ),
        _metric("canary_fraction", "gauge", "What the new store gets in canary", report.fraction),
        *(each for at, side in enumerate(SIDES) for each in _of_side(report, side, latencies[at])),
        *(
            _metric(name, "counter", text, getattr(report, name))
            for name, text in _COUNTERS.items()
        ),
        *(
            _metric("transitions", "counter", "Changes of stage", count, before=before, after=after)
            for (before, after), count in transitions.items()
        ),
    ]


def _of_side(report: Report, side: str, latencies: Buckets) -> list[Metric]:
    answered, failed = report.requests[side], report.errors[side]
    return [
        _metric("requests", "counter", "Requests by who answered", answered, side=side),
        _metric("errors", "counter", "Lookups that failed", failed, side=side),
        _metric("latency_seconds", "histogram", "What lookups took", latencies, side=side),
    ]


def _metric(
    noun: str,
    kind: Literal["counter", "gauge", "histogram"],
    text: str,
    value: float | Buckets,
    **labels: str,
) -> Metric:
    return metric(f"rollout_{noun}", kind, text, value, **labels)
