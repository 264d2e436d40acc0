"""Placement of logs that no machine holds: in files, by this process or by workers of Ray.

Imports the methods and kernels of placement, and Ray on use and nowhere else.
"""

from bandana_kv.placement.distributed.driver import Figures, place
from bandana_kv.placement.distributed.runner import InProcess, Moved, Runner

__all__ = ["Figures", "InProcess", "Moved", "Runner", "place"]
