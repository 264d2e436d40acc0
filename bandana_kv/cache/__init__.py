"""Rows in DRAM: eviction and admission as small compiled kernels over arrays.

Imports kernels; reads no block, and does not know whether rows are there or only simulated.
"""
