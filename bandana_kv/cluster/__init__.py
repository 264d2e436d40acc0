"""A store that lies in a cluster: its versions, who serves them, who may write them.

Blocks, and the files of each version, are values in the cluster (``adapters/resp.py``); a few small
keys in one slot of it (``adapters/resp_catalogue.py``) say which version is current, who writes and
who reads. Everything else is today's machinery on a directory: a load writes into one that is
thrown away, a process that serves keeps the index of its versions in one.

``bandana_kv.load``, ``open``, ``versions`` and ``rollback`` call their namesakes here where they
are given an address.

Imports load and serve, and all below; nothing imports it but
:mod:`bandana_kv.system.addresses`, by name and when it is asked for.
"""

from bandana_kv.cluster.operating import Version, rollback, sweep, versions
from bandana_kv.cluster.publishing import load
from bandana_kv.cluster.serving import open

__all__ = ["Version", "load", "open", "rollback", "sweep", "versions"]
