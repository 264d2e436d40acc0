"""For authors of adapters: a suite that says whether an adapter keeps the contract.

It needs pytest. A subclass of two lines runs all of it::

    class TestMine(AdapterConformance):
        adapter_name = "mine"

The harnesses beside it (``malformed``, ``torture``, ``crashes``, ``cluster_faults``) go without
pytest. Imports any room; no room but the command lines imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bandana_kv.testing.conformance import AdapterConformance, in_child, payloads_for

__all__ = ["AdapterConformance", "in_child", "payloads_for"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bandana_kv.testing import conformance

        return getattr(conformance, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
