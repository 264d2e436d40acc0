"""Partitioners of other projects behind the same interface, each in a child process."""

from bandana_kv.placement.outside import methods as _methods  # registers its methods
from bandana_kv.placement.outside.process import PartitionerError

__all__ = ["PartitionerError"]

del _methods
