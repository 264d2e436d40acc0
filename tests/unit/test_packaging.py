"""What the built distributions hold, and what they do not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# source tree -> where it is installed
TREES = {
    "bandana_kv": "bandana_kv",
    "adapters": "bandana_kv/adapters",
    "tools": "bandana_kv/tools",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, outside of this repository's directory."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources(tree: Path) -> set[str]:
    return {
        path.relative_to(tree).as_posix()
        for path in tree.rglob("*.py")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built: the real tree may hold an older build, or be in one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy2(REPOSITORY / name, copy)
    ignore = shutil.ignore_patterns("__pycache__")
    for tree in TREES:
        shutil.copytree(REPOSITORY / tree, copy / tree, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """A directory with the sdist, and the wheel that was built from the sdist."""
    # without isolation nothing is downloaded
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=checkout)
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_wheel_has_one_top_level_name(wheel_names: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"bandana_kv"}


@pytest.mark.slow
@pytest.mark.parametrize("tree", TREES)
def test_wheel_holds_every_module(wheel_names: set[str], checkout: Path, tree: str) -> None:
    expected = {f"{TREES[tree]}/{name}" for name in sources(checkout / tree)}
    assert expected - wheel_names == set(), "a package without __init__.py?"


@pytest.mark.slow
def test_wheel_holds_nothing_but_modules_and_what_they_need(
    wheel_names: set[str], checkout: Path
) -> None:
    expected = {
        f"{place}/{name}" for tree, place in TREES.items() for name in sources(checkout / tree)
    }
    extra = {name for name in wheel_names if ".dist-info/" not in name} - expected
    assert extra == {"bandana_kv/py.typed", "bandana_kv/assess/page.html.j2"}


@pytest.mark.slow
def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert metadata["Name"] == "bandana-kv"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "kahypar" in metadata.get_all("Provides-Extra", [])


@pytest.mark.slow
def test_wheel_imports_away_from_the_sources(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # the requirements come from this environment, its editable install must not help
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in f.__module__];"
        "import bandana_kv.adapters, bandana_kv.tools;"
        "print(bandana_kv.__file__, bandana_kv.adapters.__file__, bandana_kv.tools.__file__)"
    )
    site = tmp_path / "site"
    printed = run(sys.executable, "-I", "-c", code, site, cwd=tmp_path).split()
    assert printed == [str(site / place / "__init__.py") for place in TREES.values()]


@pytest.mark.slow
def test_editable_install_is_lenient(tmp_path: Path) -> None:
    """Modules written after the installation are seen, also by scripts run by path."""
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    for tree in TREES:
        (checkout / tree).mkdir(parents=True)
        (checkout / tree / "__init__.py").touch()
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy2(REPOSITORY / name, checkout)
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--no-build-isolation", "--target", site.strip()),
        *("--editable", checkout),
        cwd=tmp_path,
    )
    for tree in TREES:
        (checkout / tree / "written_later.py").write_text("HERE = __file__\n")
    script = checkout / "tools" / "run_by_path.py"
    script.write_text(
        "from importlib import import_module\n"
        "for name in ('bandana_kv', 'bandana_kv.adapters', 'bandana_kv.tools'):\n"
        "    print(import_module(name + '.written_later').HERE)\n"
    )
    printed = run(python, script, cwd=tmp_path).split()
    assert printed == [str(checkout / tree / "written_later.py") for tree in TREES]


def test_constraints_pin_every_requirement_without_addresses() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=;]", line)[0].replace("_", "-") for line in wanted}
    assert names - pinned - {"bandana-kv"} == set()
