"""The room without its extra: it is imported, and says what is missing when it is used."""

from __future__ import annotations

import sys

import pytest

import bandana_kv.pyg
from bandana_kv.errors import MissingExtraError


@pytest.mark.parametrize("missing", ["torch", "torch_geometric.data"])
def test_what_is_missing_is_said_when_it_is_used(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing != "torch":
        pytest.importorskip("torch", reason="torch is not installed: make test-torch")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "bandana_kv.pyg.feature_store", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'bandana-kv\[pyg\]'"):
        _ = bandana_kv.pyg.FeatureStore


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GraphStore'"):
        _ = bandana_kv.pyg.GraphStore  # type: ignore[attr-defined]
