"""Rows and a plan in, a version in a store directory out.

Imports placement, plan and disk; never serve: what is loaded is served by whoever opens it.
"""
