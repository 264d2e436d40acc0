"""Every figure of the README and the benchmarks page, against the result that was kept.

    python bench/figures_check.py [--pages README.md docs/benchmarks.md]

A figure is a number in a cell of a table, but for its first column, and a number in prose that has
a unit, a decimal point or thousands. The table or paragraph is followed by a comment that says
where they come from, a line for each row, in their order:

    <!-- figures
    request-path.json:hit[ids=34,threads=1]: us | memmap_us | memmap_us / us
    -->

The file lies in bench/results/. What stands before the second colon is where paths begin. `[a=b]`
takes the one item of a list that has it, `[2]` the third, `[*]` all; `file.json:path` leads into
another file, and with `*` in its name into all that fit. There are numbers, `+ - * /`, brackets,
and min, max, sum, gmean of lists. A figure is right if it is the kept value rounded to as many
digits as are printed. Code is no figure, nor are addresses.

A link to a result says its commit: [`load.json`](bench/results/load.json) at `63f76aed7e82`. It is
compared, too, and each result that figures come from is to be linked on the benchmarks page.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import operator
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
PAGES = [ROOT / "README.md", BENCHMARKS, ROOT / "docs" / "performance.md"]

_NUMBER = r"(?<![\w.,^/-])\d+(?:,\d{3})*(?:\.\d+)?(?:(?=x\b)|(?![\w^]|[.,]\d|-\w))"
_UNIT = (
    r"(?:%|x\b|(?:times|us|ms|s|seconds?|minutes?|[kKMGT]i?B(?:/s)?|B/s|k/s|M/s|drives?|"
    r"rows a second|reads a second|lookups a second|updates a second|requests a second|"
    r"million (?:rows|lookups|updates|reads))\b)"
)
# A number with a unit; a unit may stand for all of "0.5, 2 and 4 %".
_WITH_UNIT = re.compile(rf"({_NUMBER})(?:(?:, | and | to | or )(?={_NUMBER})|\s?{_UNIT})")
_TELLING = re.compile(rf"{_NUMBER}")
_OPEN, _CLOSE = "<!-- figures", "-->"
# Sizes of a block or a page are constants of the format, versions of Python are no measurements.
_NO_FIGURES = re.compile(r"Python 3\.\d+(?: to 3\.\d+)?|`[^`]*`|\]\([^)]*\)|https?://\S+|\b4 KiB\b")
_KEPT = re.compile(r"\]\((?:\.\./)?bench/results/([\w.-]+\.json)\)(?: at `([^`]+)`)?")
_PATH = r"[A-Za-z_]\w*(?:\.\w+|\[[^\]]*\])*"
_TOKEN = re.compile(
    rf"\s*(?:(?P<far>[\w.*-]+\.json:{_PATH})|(?P<call>(?:min|max|sum|gmean|abs)(?=\())"
    rf"|(?P<near>{_PATH})|(?P<number>\d+(?:\.\d+)?(?:e\d+)?)|(?P<sign>[-+*/()]))"
)

Value = float | list[float]


class FigureError(ValueError):
    """A source that leads nowhere."""


@dataclass(frozen=True)
class Figure:
    """A number as it is printed, and where."""

    line: int
    text: str

    def is_rounded(self, kept: float) -> bool:
        """Return whether this is `kept`, to as many digits as it has."""
        digits = len(self.text.partition(".")[2])
        apart = abs(float(self.text.replace(",", "")) - kept)
        return apart <= 0.5 * math.pow(10, -digits) * (1 + 1e-9)


@dataclass(frozen=True)
class Source:
    """The sources of one row, or of a run of figures."""

    line: int
    base: str
    expressions: list[str]


def figures_in(line: str, number: int, cells: bool) -> list[Figure]:
    """Return the figures of one line, of a table's row or of prose."""
    if cells:
        line = line.strip().strip("|").partition("|")[2]
    text = _NO_FIGURES.sub(lambda found: " " * len(found.group()), line)
    if cells:
        return [Figure(number, found.group()) for found in _TELLING.finditer(text)]
    at = {found.start(1) for found in _WITH_UNIT.finditer(text) if _is_measured(text, found)}
    return [
        Figure(number, found.group())
        for found in _TELLING.finditer(text)
        if found.start() in at or "." in found.group() or "," in found.group()
    ]


def _is_measured(text: str, found: re.Match[str]) -> bool:
    """Return whether a unit follows, maybe behind other numbers."""
    while not re.match(rf"{_NUMBER}\s?{_UNIT}", text[found.start(1) :]):
        following = _WITH_UNIT.match(text, found.end())
        if following is None:
            return False
        found = following
    return True


@dataclass(frozen=True)
class Block:
    """A paragraph, a list or a table, with the sources that follow it."""

    rows: list[list[Figure]]
    sources: list[Source]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page that have figures, or sources."""
    lines = page.read_text().split("\n")
    rows: list[list[Figure]] = []
    sources: list[Source] = []
    at, ended, fenced = 0, False, False
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            pass
        elif line.startswith(_OPEN):
            at += 1
            while not lines[at].startswith(_CLOSE):
                sources.append(_source(lines[at], at + 1))
                at += 1
        elif line.startswith("#"):
            rows.append(figures_in(line, at + 1, cells=False))
        elif not line.strip():
            ended = True
        else:
            if ended:
                yield Block([row for row in rows if row], sources)
                rows, sources, ended = [], [], False
            cells = line.startswith("|")
            if not (cells and _is_heading(lines, at)):
                rows.append(figures_in(line, at + 1, cells))
        at += 1
    yield Block([row for row in rows if row], sources)


def _is_heading(lines: list[str], at: int) -> bool:
    return bool(re.match(r"^\|[ :|-]+\|$", (lines[at + 1 : at + 2] or [""])[0]))


def _source(line: str, number: int) -> Source:
    found = re.match(r"^([\w.-]+\.json(?::\S+?)?): (.+)$", line)
    if found is None:
        return Source(number, "", [each.strip() for each in line.split(" | ")])
    return Source(number, found[1], [each.strip() for each in found[2].split(" | ")])


# What expressions mean.


def loaded(name: str) -> Any:
    """Return what a file of bench/results/ holds."""
    path = RESULTS / name
    if not path.is_file():
        raise FigureError(f"there is no bench/results/{name}")
    return json.loads(path.read_text())


def followed(thing: Any, path: str) -> Any:
    """Return what lies at the end of a path; a list where it goes through `[*]`."""
    steps = re.findall(r"([\w-]+)|\[([^\]]*)\]", path)
    for at, (name, inside) in enumerate(steps):
        try:
            if name:
                thing = thing[name]
            elif inside == "*":
                rest = "".join(f".{n}" if n else f"[{i}]" for n, i in steps[at + 1 :])
                return [followed(each, rest) for each in thing]
            elif "=" in inside:
                asked = dict(each.split("=", 1) for each in inside.split(","))
                (thing,) = [e for e in thing if all(str(e.get(k)) == v for k, v in asked.items())]
            else:
                thing = thing[int(inside)]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise FigureError(f"nothing, or more than one thing, lies at {path!r}") from None
    return thing


def value_of(expression: str, base: str) -> float:
    """Return what an expression comes to."""
    names: dict[str, Value] = {}
    code, at = "", 0
    while at < len(expression.rstrip()):
        found = _TOKEN.match(expression, at)
        if found is None:
            raise FigureError(f"cannot be read: {expression[at:]!r}")
        at = found.end()
        if found["far"] or found["near"]:
            name = f"v{len(names)}"
            names[name] = _looked_up(found["far"] or found["near"], base, bool(found["far"]))
            code += f" {name} "
        else:
            code += found.group()
    try:
        value = _evaluated(ast.parse(code.strip(), mode="eval").body, names)
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise FigureError(f"cannot be reckoned: {expression!r} ({error})") from error
    if isinstance(value, list):
        raise FigureError(f"is a list: {expression!r}")
    return value


def _looked_up(path: str, base: str, far: bool) -> Value:
    file, _, inside = path.partition(":") if far else base.partition(":")
    if not far:
        inside = f"{inside}.{path}" if inside else path
    if "*" in file:
        found = [
            followed(json.loads(each.read_text()), inside) for each in sorted(RESULTS.glob(file))
        ]
    else:
        found = followed(loaded(file), inside)
    for each in found if isinstance(found, list) else [found]:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise FigureError(f"{path!r} is no number")
    return found if isinstance(found, list) else float(found)


_SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _gmean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


_CALLS: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "gmean": _gmean,
    "abs": lambda values: abs(values[0]),
}


def _evaluated(node: ast.expr, names: dict[str, Value]) -> Value:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _each(operator.mul, -1.0, _evaluated(node.operand, names))
    if isinstance(node, ast.BinOp):
        sign = _SIGNS[type(node.op)]
        return _each(sign, _evaluated(node.left, names), _evaluated(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        values = _evaluated(node.args[0], names)
        return _CALLS[node.func.id](values if isinstance(values, list) else [values])
    raise SyntaxError("not arithmetic")


def _each(sign: Callable[[float, float], float], left: Value, right: Value) -> Value:
    if isinstance(left, list) and isinstance(right, list):
        return [sign(a, b) for a, b in zip(left, right, strict=True)]
    if isinstance(left, list):
        return [sign(a, right) for a in left]  # type: ignore[arg-type]
    if isinstance(right, list):
        return [sign(left, b) for b in right]
    return sign(left, right)


# What is wrong.


def wrong_in(page: Path) -> Iterator[str]:
    """Yield a line for each figure of a page that its result does not have."""
    for block in blocks_of(page):
        figures = [figure for row in block.rows for figure in row]
        sources = [(s, e) for s in block.sources for e in s.expressions]
        for figure, (source, expression) in zip(figures, sources, strict=False):
            try:
                kept = value_of(expression, source.base)
            except FigureError as error:
                yield f"{page.name}:{source.line}: {error}"
                continue
            if not figure.is_rounded(kept):
                digits = len(figure.text.partition(".")[2])
                yield (
                    f"{page.name}:{figure.line}: printed {figure.text}, kept {kept:,.{digits}f}"
                    f" ({source.base}: {expression})"
                )
        for figure in figures[len(sources) :]:
            yield f"{page.name}:{figure.line}: {figure.text} has no source"
        for source, expression in sources[len(figures) :]:
            yield f"{page.name}:{source.line}: {expression!r} is the source of no figure"
    for number, line in enumerate(page.read_text().split("\n"), 1):
        for name, commit in _KEPT.findall(line):
            try:
                kept_at = commit_of(name)
            except FigureError as error:
                yield f"{page.name}:{number}: {error}"
                continue
            if commit and commit != kept_at:
                yield f"{page.name}:{number}: {name} is of commit {kept_at}, not {commit}"


def commit_of(name: str) -> str | None:
    """Return the commit that a result was measured at, None where it was not kept."""
    result = loaded(name)
    commit = result.get("surroundings", result).get("commit")
    return None if commit is None else str(commit)


def not_linked(pages: list[Path], listing: Path) -> Iterator[str]:
    """Yield a line for each result that figures come from and that `listing` does not name."""
    linked = dict(_KEPT.findall(listing.read_text()))
    used: set[str] = set()
    for page in pages:
        for block in blocks_of(page):
            for source in block.sources:
                text = " ".join([source.base, *source.expressions])
                for name in re.findall(r"[\w.*-]+\.json", text):
                    used |= {each.name for each in RESULTS.glob(name)}
    for name in sorted(used):
        if name not in linked:
            yield f"{listing.name}: figures come from {name}, which it does not link to"
        elif not linked[name] and commit_of(name) is not None:
            yield f"{listing.name}: says no commit of {name}, which is {commit_of(name)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare printed figures with kept results.")
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES)
    pages = parser.parse_args().pages
    wrong = [line for page in pages for line in wrong_in(page)]
    if pages == PAGES:
        wrong += not_linked(pages, BENCHMARKS)
    for line in wrong:
        print(line)
    count = sum(len(row) for page in pages for block in blocks_of(page) for row in block.rows)
    print(f"{count} figures, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
