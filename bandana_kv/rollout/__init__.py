"""From an old source of rows to a store by stages, and back by itself when something is wrong.

Imports serve, rows and metrics; no other room knows of stages.
"""

from bandana_kv.rollout.data import (
    Difference,
    Limits,
    Report,
    Seen,
    Shares,
    Stage,
    Transition,
)
from bandana_kv.rollout.rollout import Rollout

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
