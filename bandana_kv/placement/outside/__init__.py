"""Partitioners of other projects behind the same interface, each in a child process.

Imports placement's registry; imports no partitioner but in the child.
"""

from bandana_kv.placement.outside import methods as _methods  # registers its methods

del _methods
