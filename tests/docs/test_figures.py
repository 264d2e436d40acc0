"""Figures that are printed are those that were kept."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def _checker() -> ModuleType:
    path = ROOT / "bench" / "figures_check.py"
    spec = importlib.util.spec_from_file_location("figures_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass asks for its module by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CHECKER = _checker()


@pytest.mark.parametrize("page", CHECKER.PAGES, ids=lambda page: page.name)
def test_figures_are_those_that_were_kept(page: Path) -> None:
    assert list(CHECKER.wrong_in(page)) == []


def test_every_result_is_linked_with_its_commit() -> None:
    assert list(CHECKER.not_linked(CHECKER.PAGES, CHECKER.BENCHMARKS)) == []


def test_the_readme_stays_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def changed(tmp_path: Path, page: Path, old: str, new: str) -> list[str]:
    text = page.read_text()
    assert old in text
    copy = tmp_path / page.name
    copy.write_text(text.replace(old, new, 1))
    return list(CHECKER.wrong_in(copy))


def test_a_digit_that_was_changed_is_found(tmp_path: Path) -> None:
    lines = README.read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if "a request of 34 ids" in line]
    printed = re.findall(r"\d+\.\d", lines[number - 1])[0]
    kept = CHECKER.value_of("hit[ids=34,threads=1].us", "request-path.json")
    (wrong,) = changed(tmp_path, README, f"us | {printed}", "us | 9.9")
    assert wrong.startswith(f"README.md:{number}: printed 9.9, kept {kept:.1f} (request-path.json")


@pytest.mark.parametrize("page", CHECKER.PAGES, ids=lambda page: page.name)
def test_each_digit_counts(page: Path, tmp_path: Path) -> None:
    """Whichever figure is changed, it is found, at its line."""
    lines = page.read_text().splitlines()
    figures = [each for block in CHECKER.blocks_of(page) for row in block.rows for each in row]
    assert len(figures) > 10
    copy = tmp_path / page.name
    for figure in figures[:: max(1, len(figures) // 20)]:
        last = str((int(figure.text[-1]) + 5) % 10)
        line = lines[figure.line - 1]
        cells = line.startswith("|")
        start = line.index("|", 1) if cells else 0
        at = re.compile(rf"(?<![\w.,]){re.escape(figure.text)}(?![\w.,]\d)").search(line, start)
        assert at is not None
        changed_line = line[: at.end() - 1] + last + line[at.end() :]
        copy.write_text("\n".join([*lines[: figure.line - 1], changed_line, *lines[figure.line :]]))
        wrong = list(CHECKER.wrong_in(copy))
        assert len(wrong) == 1
        assert wrong[0].startswith(f"{page.name}:{figure.line}: printed ")


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("| a 1 | 0.476 | 52.4% | `LRU 2` |", ["0.476", "52.4"]),
        ("it is 2.1 and 5.2 times as fast as 8 threads", ["2.1", "5.2"]),
        ("between 3 and 5 %, and 7 rows, at 12 us", ["3", "5", "12"]),
        ("130,155 rows, 4 KiB blocks, Python 3.11 to 3.14, p99, 2^31, Apache-2.0", ["130,155"]),
        ("at 279, 244 and 161 MiB/s, 3x [5 %](of/6.5.md)", ["279", "244", "161", "3", "5"]),
    ],
)
def test_what_a_figure_is(text: str, figures: list[str]) -> None:
    found = CHECKER.figures_in(text, 1, cells=text.startswith("|"))
    assert [each.text for each in found] == figures


def test_a_figure_without_a_source_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("It is 3.1 times as fast.\n\n| | a |\n|---|---|\n| b | 17 |\n")
    assert list(CHECKER.wrong_in(page)) == [
        "page.md:1: 3.1 has no source",
        "page.md:5: 17 has no source",
    ]


def test_sources_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "It is 3.1 times as fast, 2.0 times, 1.0 times.\n\n"
        "<!-- figures\ngone.json: a\nload.json: gone\nload.json: bench\nload.json: rows\n-->\n"
    )
    assert list(CHECKER.wrong_in(page)) == [
        "page.md:4: there is no bench/results/gone.json",
        "page.md:5: nothing, or more than one thing, lies at 'gone'",
        "page.md:6: 'bench' is no number",
        "page.md:7: 'rows' is the source of no figure",
    ]


def test_a_wrong_commit_is_found(tmp_path: Path) -> None:
    commit = CHECKER.commit_of("load.json")
    page = CHECKER.BENCHMARKS
    (wrong,) = changed(tmp_path, page, f"load.json) at `{commit}`", "load.json) at `0123456789ab`")
    assert wrong.endswith(f"load.json is of commit {commit}, not 0123456789ab")


def test_paths_and_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHECKER, "RESULTS", tmp_path)
    made = {"runs": [{"n": 1, "us": 2.0}, {"n": 2, "us": 8.0}], "all": {"rows": 10}}
    (tmp_path / "a-1.json").write_text(json.dumps(made))
    (tmp_path / "a-2.json").write_text(json.dumps({"all": {"rows": 40}}))
    for expression, value in {
        "runs[n=2].us": 8,
        "runs[1].us / runs[n=1].us - 1": 3,
        "gmean(runs[*].us)": 4,
        "max(runs[*].us / runs[*].n) * 10": 40,
        "a-2.json:all.rows + all.rows": 50,
        "gmean(a-*.json:all.rows)": 20,
        "-(1 - 3) * 2": 4,
    }.items():
        assert CHECKER.value_of(expression, "a-1.json") == pytest.approx(value)
    for wrong in ("runs[*].us", "runs[n=3].us", "all", "rows ** 2", "runs[0].us / 0", "pow(2)"):
        with pytest.raises(CHECKER.FigureError):
            CHECKER.value_of(wrong, "a-1.json")
