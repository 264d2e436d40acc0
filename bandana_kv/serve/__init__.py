"""Rows by table and id, from DRAM or from blocks, while versions, updates and placements change.

Imports disk, cache, rows, logs and metrics, and profiles; never placement, plan, simulate, load.
"""
