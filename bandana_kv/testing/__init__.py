"""For authors of adapters: a suite that says whether an adapter keeps the contract.

It needs pytest. A subclass of two lines runs all of it::

    class TestMine(AdapterConformance):
        adapter_name = "mine"
"""

from bandana_kv.testing.conformance import AdapterConformance, in_child, payloads_for

__all__ = ["AdapterConformance", "in_child", "payloads_for"]
