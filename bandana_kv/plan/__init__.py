"""What `load` builds and `open` obeys, and how it is chosen.

Imports placement and simulate to choose; the plan itself is data of disk, which serving reads.
"""

from bandana_kv.cache.allocation import allocate
from bandana_kv.disk.plan import Choice, Plan, PlannedPoint, Predicted, TablePlan
from bandana_kv.plan.choose import choose_plan

__all__ = [
    "Choice",
    "Plan",
    "PlannedPoint",
    "Predicted",
    "TablePlan",
    "allocate",
    "choose_plan",
]
