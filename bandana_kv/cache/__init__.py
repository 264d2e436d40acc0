"""Rows in DRAM: eviction and admission as small compiled kernels over arrays."""
