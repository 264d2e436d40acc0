"""Placement of logs that no machine holds: in files, by this process or by workers of Ray.

Imports the methods and kernels of placement, and Ray on use and nowhere else.
"""

from bandana_kv.placement.distributed.curves import curve
from bandana_kv.placement.distributed.driver import Figures, place, place_log
from bandana_kv.placement.distributed.log import LogInFiles, count_rows, fanout, open_log
from bandana_kv.placement.distributed.ray_runner import OnRay
from bandana_kv.placement.distributed.runner import InProcess, Moved, Runner
from bandana_kv.placement.distributed.sample import Sample, sample, whole

__all__ = [
    "Figures",
    "InProcess",
    "LogInFiles",
    "Moved",
    "OnRay",
    "Runner",
    "Sample",
    "count_rows",
    "curve",
    "fanout",
    "open_log",
    "place",
    "place_log",
    "sample",
    "whole",
]
