"""How code is compiled, and small kernels over arrays: checksums, packed integers, layouts.

Imports nothing of the house but errors; opens no file and decides nothing.
"""
