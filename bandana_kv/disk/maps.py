"""Files mapped into memory: :mod:`bandana_kv.system.maps`, which rooms below this one need, too."""

from __future__ import annotations

from bandana_kv.system.maps import let_go, map_file

__all__ = ["let_go", "map_file"]
