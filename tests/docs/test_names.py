"""What the documentation names is there: files, functions in them, dotted names, links."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from bandana_kv.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
# It tells what was called how before.
FORMER = ROOT / "docs" / "decisions" / "0012-rooms.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# How paths in code spans begin that are not of the repository.
ELSEWHERE = ("/", "DIR/")
# Names that begin like ours and are not Python's.
OTHERS = {"bandana_kv.adapters"}  # an entry point group as well
TORCH = importlib.util.find_spec("torch") is not None


def found(path: str) -> Path | None:
    """Return the file or directory that a page means: rooms stand without their package."""
    for place in (ROOT / path, ROOT / "bandana_kv" / path):
        if place.exists() and place.is_dir() == path.endswith("/"):
            return place
    return None


def defines(file: Path, name: str) -> bool:
    """Return whether a module has a name, a class's name behind a dot included."""
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for part in name.split("."):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part:
                body = node.body
                break
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AnnAssign) else []
            if any(isinstance(each, ast.Name) and each.id == part for each in targets):
                body = []
                break
        else:
            return False
    return True


def named(page: Path) -> list[tuple[str, str]]:
    """Return the paths in code spans and commands, each with the name behind its colon."""
    text = page.read_text()
    spans = re.findall(r"`([\w./-]+?(?:/|\.py|\.md|\.toml))(?::([\w.]+))?`", text)
    commands = re.findall(r"\bpython ((?:tools|bench)/\w+\.py)()", text)
    return [(path, name) for path, name in spans + commands if not path.startswith(ELSEWHERE)]


def dotted_names(page: Path) -> set[str]:
    return set(re.findall(r"\bbandana_kv(?:\.[A-Za-z_]\w*)+", page.read_text()))


def is_there(dotted: str) -> bool:
    if dotted.startswith("bandana_kv.torch") and not TORCH:
        return True  # `make test-torch` looks
    parts = dotted.split(".")
    for many in range(len(parts), 0, -1):
        try:
            with warnings.catch_warnings():  # of what others import
                warnings.simplefilter("ignore", DeprecationWarning)
                thing: object = import_module(".".join(parts[:many]))
        except MissingExtraError:  # its text says what it would define
            file = found("/".join(parts[1:many]) + ".py")
            if file is not None:
                return defines(file, ".".join(parts[many:]))
            continue
        except ImportError:
            continue
        for part in parts[many:]:
            if part in getattr(thing, "__all__", ()):
                return True  # which may need an extra to be had
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


def wrong_names(page: Path) -> list[str]:
    """Return what a page names in code spans, as a path or as a name in one, and is not there."""
    wrong = []
    for path, name in named(page):
        place = found(path)
        if place is None:
            wrong.append(f"there is no {path}")
        elif name and not defines(place, name):
            wrong.append(f"{path} does not define {name}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_are_there(page: Path) -> None:
    if page == FORMER:
        pytest.skip("its table has the former names")
    assert wrong_names(page) == []


def test_the_architecture_draws_every_room() -> None:
    drawn = ARCHITECTURE.read_text().split("## The way of a lookup")[0]
    rooms = [path.parent.name for path in (ROOT / "bandana_kv").glob("*/__init__.py")]
    assert [room for room in rooms if f"{room}/" not in drawn] == []


def test_the_architecture_stays_a_page() -> None:
    assert len(ARCHITECTURE.read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_modules_that_are_there(page: Path) -> None:
    if page == FORMER:
        pytest.skip("its table has the former names")
    wrong = sorted(name for name in dotted_names(page) - OTHERS if not is_there(name))
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_not_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in anchors, f"{page.name} links to {target}"


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`serve/store.py:EmbeddingStore.gone`, `serve/gone.py`, bandana_kv.serve.gone\n"
        "`DIR/lock/`, `python tools/gone.py DIR`\n"
    )
    (store, gone), (file, _), command = named(page)
    assert command == ("tools/gone.py", "")
    assert wrong_names(page) == [
        "serve/store.py does not define EmbeddingStore.gone",
        "there is no serve/gone.py",
        "there is no tools/gone.py",
    ]
    place = found(store)
    assert place is not None
    assert not defines(place, gone)
    assert defines(place, "EmbeddingStore.multi_get")
    assert found(file) is None
    assert [is_there(name) for name in dotted_names(page)] == [False]
    assert is_there("bandana_kv.serve.store.EmbeddingStore")


def test_the_site_shows_every_page() -> None:
    shown = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - shown == set()


def test_the_reference_names_what_is_there() -> None:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    names = [
        n for page in pages for n in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert len(names) > 10
    assert [name for name in names if not is_there(name)] == []
