"""How fast a store would serve: costs measured on this machine, times what simulation counts.

Imports load and serve, to measure a small store; the model itself only numbers.
"""

from bandana_kv.assess.performance.calibration import calibrate
from bandana_kv.assess.performance.costs import Costs, Load, Parts
from bandana_kv.assess.performance.model import Performance, at_rate, predict

__all__ = ["Costs", "Load", "Parts", "Performance", "at_rate", "calibrate", "predict"]
