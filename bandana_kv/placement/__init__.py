"""Which rows share a block: the methods, and fanout as their measure.

Imports logs, rows and simulate; knows no engine, and serving never imports it.
"""

from bandana_kv.disk.placement import Placement
from bandana_kv.placement import kmeans as _kmeans  # registers its methods
from bandana_kv.placement import orders as _orders  # registers its methods
from bandana_kv.placement import outside as _outside  # registers its methods
from bandana_kv.placement import shp as _shp  # registers its methods
from bandana_kv.placement.measure import fanout
from bandana_kv.placement.registry import Job, methods, place, register

__all__ = ["Job", "Placement", "fanout", "methods", "place", "register"]

del _kmeans, _orders, _outside, _shp
