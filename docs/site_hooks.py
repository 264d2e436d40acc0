"""What the site shows of the repository outside of docs/: pages at its root, and files linked to.

Links are written for a reader of the repository. Those that leave docs/ are led to copies here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages of the root, by the names that they have here: index.md is a page of its own.
PAGES = {
    name: name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
PAGES["README.md"] = "overview.md"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+://|#)([^)#\s]+)((?:#[^)]*)?)(?=\))")
# Where figures come from, below them; what shows such a comment in a block of code stays.
_COMMENT = re.compile(r"(?<=\n\n)<!-- figures\n.*?^-->$", re.DOTALL | re.MULTILINE)


def uri_of(target: Path) -> str:
    """Return where a file of the repository lies in the site."""
    if target.is_dir():
        target /= "README.md"
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    inside = target.relative_to(ROOT).as_posix()
    return PAGES.get(inside, f"source/{inside}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of the root, and all files that pages link to."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for file in list(files.documentation_pages()):
        page = Path(str(file.abs_src_path))
        for target, _ in _LINK.findall(page.read_text()):
            place = (page.parent / target).resolve()
            uri = uri_of(place)
            if place.is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(place)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to where things lie here, and leave comments out."""
    source = Path(str(page.file.abs_src_path))
    here = posixpath.dirname(page.file.src_uri)

    def led(found: re.Match[str]) -> str:
        uri = uri_of((source.parent / found[1]).resolve())
        return posixpath.relpath(uri, here or ".") + found[2]

    return _LINK.sub(led, _COMMENT.sub("", markdown))
