"""Where rows come from: arrays and files of whole tables, and sources by table and id.

Imports kernels; knows no engine, no placement and no store: those ask it.
"""
