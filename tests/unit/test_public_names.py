"""What users import stays importable, wherever in the house it lies."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bandana_kv

# As README and docs have them.
NAMES = {
    "bandana_kv.blocks": ["seal", "verify"],
    "bandana_kv.cluster": ["Version", "load", "open", "rollback", "sweep", "versions"],
    "bandana_kv.drift": ["Watch", "advise", "advise_store", "placement_for", "served_table"],
    "bandana_kv.exporter": ["Collector", "Exporter", "serve"],
    "bandana_kv.logs": ["JsonFormatter"],
    "bandana_kv.metrics": ["Buckets", "Labelled", "Measured", "Metric"],
    "bandana_kv": ["export", "load", "open", "repair", "rollback", "verify", "versions"],
    "bandana_kv.migration": ["Migrated", "migrate"],
    "bandana_kv.performance": ["Load", "at_rate", "calibrate", "predict"],
    "bandana_kv.placement.incremental": ["place_incrementally"],
    "bandana_kv.placement.measure": ["layout_of"],
    "bandana_kv.plan": ["Plan", "allocate", "choose_plan"],
    "bandana_kv.policy": ["Admission", "Policy"],
    "bandana_kv.recording": ["Recorder", "Recording", "read_recording"],
    "bandana_kv.simulate.replay": ["stream_of"],
    "bandana_kv.testing": ["AdapterConformance"],
    "bandana_kv.tools": [],
}


@pytest.mark.parametrize("module", NAMES)
def test_documented_modules_are_importable(module: str) -> None:
    found = import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def test_a_name_gives_the_same_objects_as_the_room() -> None:
    from bandana_kv.cache.policy import Policy
    from bandana_kv.policy import Policy as Public

    assert Policy is Public
    assert bandana_kv.policy is sys.modules["bandana_kv.cache.policy"]  # type: ignore[attr-defined]


def test_a_module_need_not_be_imported_to_be_reached() -> None:
    code = "import bandana_kv; print(bandana_kv.exporter.serve.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "bandana_kv.metrics.exporter\n"


def test_what_an_older_version_left_behind_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "drift" / "__pycache__").mkdir(parents=True)
    code = (
        f"import bandana_kv; bandana_kv.__path__.insert(0, {str(tmp_path)!r}); "
        "from bandana_kv.drift import Watch; print(Watch.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "bandana_kv.care.drift.watch\n"


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    code = "import sys, bandana_kv; print('numpy' in sys.modules, bandana_kv.__version__ != '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_a_function_is_not_hidden_by_the_room_of_its_name() -> None:
    code = (
        "import bandana_kv.load.jobs, bandana_kv; from bandana_kv.load import loader; "
        "print(bandana_kv.load is loader.load, {*bandana_kv.__all__} - {*dir(bandana_kv)})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="'bandana_kv' has no attribute 'nothing'"):
        bandana_kv.nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        import_module("bandana_kv.nothing")
    assert [name for name in bandana_kv.__all__ if not hasattr(bandana_kv, name)] == []


def test_modules_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text("MINE = 1\n")
    code = "import bandana_kv, policy; print(policy.MINE)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "1\n"
