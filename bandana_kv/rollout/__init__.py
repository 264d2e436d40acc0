"""From an old source of rows to a store by stages, and back by itself when something is wrong."""

from bandana_kv.rollout.data import (
    Difference,
    Limits,
    Report,
    Seen,
    Shares,
    Stage,
    Transition,
)
from bandana_kv.rollout.serving import Rollout

__all__ = [
    "Difference",
    "Limits",
    "Report",
    "Rollout",
    "Seen",
    "Shares",
    "Stage",
    "Transition",
]
