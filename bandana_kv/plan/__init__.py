"""What `load` builds and `open` obeys, and how it is chosen."""

from bandana_kv.plan.allocate import allocate
from bandana_kv.plan.choose import choose_plan
from bandana_kv.plan.data import Choice, Plan, PlannedPoint, Predicted, TablePlan

__all__ = [
    "Choice",
    "Plan",
    "PlannedPoint",
    "Predicted",
    "TablePlan",
    "allocate",
    "choose_plan",
]
