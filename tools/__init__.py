"""Command lines: arguments in, library calls, a table or a picture out.

Imports any room; no room imports it.
"""
