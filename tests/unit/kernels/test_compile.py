"""Kernels are compiled once, say so, and are found again by the next process."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv import adapters, tools
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.kernels.machine_code import modules_of_kernels

ANNOUNCED = "compiling kernels; this happens once per machine and release"
# Two kernels of the hundred, one of which calls another: where one is kept, all are.
SCRIPT = """
import numpy as np
import bandana_kv
from bandana_kv.disk import blocks
payloads, labels = np.zeros((2, 4096), np.uint8), np.arange(2)
blocks.seal(payloads, 1, labels, 20, 0, 10, 16)
assert not blocks.bad_blocks(payloads, 1, labels, 20, 0, 10, 16)
print(bandana_kv.__file__)
"""


def in_a_new_process(directory: Path, **environment: str) -> tuple[str, str]:
    """Return what a process logged that called kernels, and which package it used."""
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,  # else what lies in this directory would be imported
        env=inherited | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, done.stdout


def test_the_first_compilation_says_so_once(tmp_path: Path) -> None:
    logged, _ = in_a_new_process(tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert logged.count(ANNOUNCED) == 1
    assert logged.count("\n") == 1
    logged, _ = in_a_new_process(tmp_path, NUMBA_CACHE_DIR=str(tmp_path))
    assert logged == ""


@pytest.fixture
def read_only_package(tmp_path: Path) -> Path:
    """Give a directory to import an installed package from, which nobody can write to."""
    root = tmp_path / "site"
    target = root / "bandana_kv"
    ignore = shutil.ignore_patterns("__pycache__")
    for package in (bandana_kv, adapters, tools):
        source = Path(str(package.__file__)).parent
        name = "" if package is bandana_kv else source.name
        shutil.copytree(source, target / name, ignore=ignore, dirs_exist_ok=True)
    for path in sorted(target.rglob("*")):
        if path.is_dir():
            # numba caches beside a module in this directory; a file of its name forbids that,
            # to root as well
            (path / "__pycache__").touch()
            path.chmod(0o555)
    (target / "__pycache__").touch()
    target.chmod(0o555)
    return root


def test_a_read_only_installation_caches_in_the_users_directory(
    read_only_package: Path, tmp_path: Path
) -> None:
    environment = {
        "PYTHONPATH": str(read_only_package),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
    }
    logged, package = in_a_new_process(tmp_path, **environment)
    assert package.startswith(str(read_only_package))
    assert ANNOUNCED in logged
    assert list((tmp_path / "home" / "cache").rglob("*.nbc"))
    logged, _ = in_a_new_process(tmp_path, **environment)
    assert logged == ""


def test_with_no_directory_to_write_to_it_works_and_says_what_that_costs(
    read_only_package: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    logged, package = in_a_new_process(
        tmp_path,
        PYTHONPATH=str(read_only_package),
        HOME=str(nowhere / "home"),
        XDG_CACHE_HOME=str(nowhere / "cache"),
    )
    assert package.startswith(str(read_only_package))
    assert logged.count("every process compiles them anew; set NUMBA_CACHE_DIR") == 1


@kernel
def _through_kernels(live: np.ndarray, out: np.ndarray) -> None:
    for position in range(live.size):
        out[position] = signed(live[position]) - 1


@inlined
def _less_one(values: np.ndarray, at: int) -> int:
    return signed(values[at]) - 1


@kernel
def _through_inlined(live: np.ndarray, out: np.ndarray) -> None:
    for position in range(live.size):
        out[position] = _less_one(live, position)


def test_inlined_kernels_compute_what_others_do_and_count_no_references() -> None:
    live = np.arange(200, dtype=np.uint64)
    one, other = np.empty(200, np.int64), np.empty(200, np.int64)
    before = sys.getrefcount(live)
    _through_kernels(live, one)
    _through_inlined(live, other)
    assert one[0] == -1  # neither wraps around nor becomes a float
    assert np.array_equal(one, other)
    assert _less_one(live, 0) == -1
    assert sys.getrefcount(live) == before
    for kept in (_less_one, _through_inlined):
        kept.recompile()  # type: ignore[attr-defined]  # kept machine code tells nothing
    (code,) = _less_one.inspect_llvm().values()
    assert "alwaysinline" in code
    (code,) = _through_inlined.inspect_llvm().values()
    assert "call void @NRT_incref" not in code


MOVING = """
import sys
import numpy as np
from %s import Pair
from bandana_kv.kernels.compile import kernel

@kernel
def total(pair):
    return pair.first.sum() + pair.second.sum()

print(total(Pair(np.ones(2), np.ones(3))))
"""


def test_what_another_release_kept_is_compiled_anew(tmp_path: Path) -> None:
    """It may name types by modules that have moved since."""
    pair = (
        "from typing import NamedTuple\nimport numpy as np\n\n\n"
        "class Pair(NamedTuple):\n    first: np.ndarray\n    second: np.ndarray\n"
    )
    for old, new in (("before", "after"), ("after", "before")):
        (tmp_path / f"{old}.py").unlink(missing_ok=True)
        (tmp_path / f"{new}.py").write_text(pair)
        (tmp_path / "kernels.py").write_text(MOVING % f"{new}")
        done = subprocess.run(
            [sys.executable, str(tmp_path / "kernels.py")],
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"},
        )
        assert (done.returncode, done.stdout) == (0, "5.0\n"), done.stderr
        assert list((tmp_path / "__pycache__").glob("kernels.total*.nbi"))


def test_what_kernels_take_from_other_modules_is_stamped() -> None:
    stamped = modules_of_kernels()
    package = Path(bandana_kv.__file__).parent
    for module in stamped:
        tree = ast.parse(module.read_text())
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        source_of = {
            alias.asname or alias.name: package.joinpath(*str(node.module).split(".")[1:])
            for node in imports
            if str(node.module).startswith("bandana_kv.")
            for alias in node.names
        }
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            if not any(
                getattr(each, "id", "") in ("kernel", "inlined") for each in function.decorator_list
            ):
                continue
            named = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            for name in named & source_of.keys():
                assert source_of[name].with_suffix(".py") in stamped, (module, function.name, name)
