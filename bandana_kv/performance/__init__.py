"""How fast a store would serve: costs measured on this machine, times what simulation counts."""

from bandana_kv.performance.calibration import calibrate
from bandana_kv.performance.costs import Costs, Load, Parts
from bandana_kv.performance.model import Performance, at_rate, predict

__all__ = ["Costs", "Load", "Parts", "Performance", "at_rate", "calibrate", "predict"]
