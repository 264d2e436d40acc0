"""What may import what holds, and a violation of each rule is found."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLANTED = {
    "an arrow up": ("serve/store.py", "from bandana_kv.care import verification", "BROKEN"),
    "an arrow beside": ("load/loader.py", "from bandana_kv.serve import reader", "BROKEN"),
    "an arrow to the top": ("disk/manifest.py", "import bandana_kv", "BROKEN"),
    "keys that know a store": ("keys/index.py", "from bandana_kv.disk import arrays", "BROKEN"),
    "a circle in a room": ("disk/blocks.py", "from bandana_kv.disk import lock", "BROKEN"),
    "a circle in a function": (
        "serve/watcher.py",
        "def _late():\n    from bandana_kv.serve import store",
        "BROKEN",
    ),
    "a new room that has no place": ("attic/__init__.py", "", "not listed"),
    "serving that places": ("serve/table.py", "from bandana_kv.placement import shp", "BROKEN"),
    "serving that places, by another's hand": (
        "device/advice.py",
        "from bandana_kv.device import choose",
        "BROKEN",
    ),
    "an engine outside of adapters": ("disk/retention.py", "import lmdb", "BROKEN"),
    "the other engine": ("care/repair.py", "from rocksdict import Rdict", "BROKEN"),
    "torch outside of its room": ("serve/updates.py", "import torch", "BROKEN"),
    "PyG outside of its room": ("serve/updates.py", "import torch_geometric", "BROKEN"),
}
MOST_LINES = 400
# To be taken apart where they are changed next; whoever does takes the name out.
LONG = {
    "adapters/blockfile_io.py",
    "bandana_kv/cache/request.py",
    "bandana_kv/serve/answer.py",
    "bandana_kv/serve/reader.py",
    "bandana_kv/serve/store.py",
    "bandana_kv/serve/table.py",
}
RULE_OF = {
    "an engine outside of adapters": "engines",
    "the other engine": "engines",
    "serving that places": "serving",
    "serving that places, by another's hand": "serving",
    "torch outside of its room": "torch",
    "PyG outside of its room": "torch",
    "a circle in a room": "circles",
    "a circle in a function": "circles",
}


def lint(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--no-cache", "--no-logo", *options, str(REPOSITORY / "pyproject.toml")]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed, with adapters and tools inside."""
    tree = tmp_path_factory.mktemp("installed")
    for source, place in (("bandana_kv", "."), ("adapters", "adapters"), ("tools", "tools")):
        shutil.copytree(
            REPOSITORY / source,
            tree / "bandana_kv" / place,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    return tree


def test_all_rules_are_kept(installed: Path) -> None:
    done = lint(installed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_found(installed: Path, what: str) -> None:
    name, line, said = PLANTED[what]
    place = installed / "bandana_kv" / name
    before = place.read_bytes() if place.exists() else None
    place.parent.mkdir(exist_ok=True)
    place.write_text((before or b"").decode() + f"\n{line}\n")
    try:
        done = lint(installed, "--contract", RULE_OF.get(what, "rooms"))
    finally:
        if before is None:
            shutil.rmtree(place.parent)
        else:
            place.write_bytes(before)
    assert done.returncode != 0, done.stdout
    assert said in done.stdout + done.stderr


def test_rooms_say_what_they_are_for() -> None:
    for place in sorted((REPOSITORY / "bandana_kv").glob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(place.read_text())) or ""
        assert "mport" in said, f"{place} does not say what the room may import"


def test_few_modules_lie_outside_of_rooms() -> None:
    assert len(list((REPOSITORY / "bandana_kv").glob("*.py"))) <= 6


def test_modules_are_short_enough_to_be_read_at_once() -> None:
    lengths = {
        path.relative_to(REPOSITORY).as_posix(): len(path.read_text().splitlines())
        for tree in ("bandana_kv", "adapters", "tools")
        for path in (REPOSITORY / tree).rglob("*.py")
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert {name: too_long[name] for name in too_long.keys() - LONG} == {}
