"""The page of an assessment: it stands alone, opens in a browser, and says what the JSON says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from bandana_kv import AccessLog
from bandana_kv.assess import Assessment, device_class
from bandana_kv.assess.notation import at, shown
from bandana_kv.assess.page import render
from bandana_kv.assess.performance import Costs
from bandana_kv.assess.performance.costs import Parts
from bandana_kv.tools import assess as tool

COSTS = Costs(
    adapter="memory",
    row_bytes=128,
    block_bytes=4096,
    processors=2,
    threads=8,
    reads_at_once=128,
    alone=Parts(6.0, 100.0, 0.01, 1.0, 5.0),
    crowded=Parts(6.0, 110.0, 0.01, 0.5, 4.0),
    serial=Parts(5.0, 60.0, 0.05, 1.0, 1.0),
)
VOID = {"meta", "br", "img", "link", "hr", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page(HTMLParser):
    """Collects elements with their attributes, and the text of those with a data-key."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[str, str]] = []
        self.bare: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self._open == [], "elements that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            key = found.get("data-key")
            self._open.append((tag, key))
            if key is not None:
                self.figures.append((key, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if self._open and self._open[-1][1] is not None:
            key, text = self.figures.pop()
            self.figures.append((key, text + data))
        elif not {"style", "svg", "title"} & set(inside):
            self.bare.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with logs of two tables, a profile, and the report of them."""
    where = tmp_path_factory.mktemp("assess")
    rng = np.random.default_rng(0)
    groups = rng.permutation(1240).reshape(-1, 10)
    drawn = (rng.random((1500, 3)) ** 1.5 * len(groups)).astype(int)
    AccessLog.from_requests(groups[each].ravel() for each in drawn).write(where / "user.npz")
    AccessLog.from_requests(rng.integers(0, 500, (800, 1))).write(where / "item.npz")
    np.save(where / "user.npy", np.zeros((1240, 32), np.float32))
    device_class("nvme-p3700").profile().write(where / "device.json")
    (where / "damaged.json").write_text('{"format": 1, "cells": []}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        status, said, errors = run(f"{BOTH} --out report.html --json report.json")
    assert (status, errors) == (0, "")
    assert "wrote report.html" in said
    assert "wrote report.json" in said
    return where


BOTH = (
    "--log user=user.npz --log item.x=item.npz --tables user=user.npy --row-bytes item.x=64 "
    "--ordered --device device.json --dram-price 3.0 --nvm-price 0.3 --requests-per-second 2000 "
    "--latency-budget-ms 50 --drive-capacity 1TiB --rating-dwpd 1 --machine-price 0 "
    "--least-saving 0"
)


def run(text: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "calibrate", lambda *_, **__: COSTS)
        done = CliRunner().invoke(tool.main, text.split())
    return done.exit_code, done.stdout, done.stderr


def report(made: Path) -> Any:
    return msgspec.json.decode((made / "report.json").read_bytes())


def test_the_json_has_the_keys_that_were_promised(made: Path) -> None:
    found = report(made)
    assert {"recommendation", "suited", "throughput", "latency_us", "cost", "endurance"} <= {*found}
    assert "uncertainty" in found
    assert found["recommendation"] == "recommend"
    advice = found["advice"]
    assert advice["answer"] in {"one machine", "copies", "cluster"}
    for key in ("saved", "least_saved", "times_slower", "machines_added", "network", "reasons"):
        assert key in advice
    for layout in ("in_dram", "in_copies", "in_cluster"):
        assert {"machines", "nodes", "dram_bytes", "nvm_bytes", "cost", "fits"} <= {*advice[layout]}
    assert {
        "missed_rows_per_block",
        "crossover",
        "keys",
        "bytes_per_lookup",
        "bits_per_second",
    } <= {*advice["network"]}
    for table in found["tables"].values():
        assert isinstance(table["reuse"], float)
        assert isinstance(table["drift"], float)
        assert table["fanout_placed"] <= table["fanout_shuffled"]
        assert isinstance(table["dram_bytes_recommended"], int)
        assert {*table["reads_per_request"]} == {"baseline", "paper_recipe", "plan", "lower_bound"}


def test_every_figure_on_the_page_is_in_the_json(made: Path) -> None:
    found, page = report(made), Page((made / "report.html").read_text("utf-8"))
    assert len(page.figures) > 150
    for key, text in page.figures:
        assert text == shown(key, at(found, key)), key
    keys = {key for key, _ in page.figures}
    for key in (
        "verdict",
        "recommendation",
        "cost.saved_share",
        "tables.item%2Ex.reads_per_request.plan",
        "latency_us.p99",
        "endurance.years",
    ):
        assert key in keys


def test_no_figure_stands_on_the_page_by_itself(made: Path) -> None:
    page = Page((made / "report.html").read_text("utf-8"))
    bare = " ".join(page.bare).replace("Table item.x", "").replace("item.x", "")
    # shares of rows or requests that a line is about, and the numbers of parts
    for line in ("99 of 100", "busiest 1 %, 10 %", "90 % go to", "19 in 20"):
        bare = bare.replace(line, "")
    assert re.findall(r"[0-9]+", bare) == ["1", "2", "3", "4", "5"] * 2


def test_a_sample_is_said_to_be_one(made: Path) -> None:
    found = msgspec.json.decode((made / "report.json").read_bytes(), type=Assessment)
    swap = msgspec.structs.replace
    advice = swap(found.advice, scale=2500.0)
    page = Page(render(swap(found, inputs=swap(found.inputs, scale=2500.0), advice=advice)))
    assert [text for key, text in page.figures if key == "inputs.scale"] == ["2,500"]
    assert [text for key, text in page.figures if key == "advice.scale"] == ["2,500"] * 2
    assert "of the whole" in " ".join(page.bare)


def test_what_is_kept_in_dram_is_said_on_the_command_line(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    told = f"{SIZED} --device device.json --out kept.html --json kept.json"
    status, said, _ = run(told)
    assert status == 0
    assert said.startswith("do not: Keep it in DRAM: ")
    assert "where: keep it in DRAM" in said
    assert "--machine-price" in said
    status, said, _ = run(f"{told} --scale 1e6 --machine-dram 64GiB --machine-nvm 1TiB")
    assert status == 0
    assert said.startswith("recommend: ")
    assert "where: one machine" in said
    assert "64.00 GiB of DRAM, 1.00 TiB of NVM" in said
    assert "1,000,000 times what the log shows" in said


def test_the_page_needs_nothing_else(made: Path) -> None:
    text = (made / "report.html").read_text("utf-8")
    page = Page(text)
    assert "http" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith("#")
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "@import" not in text
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_what_a_log_is_called_cannot_break_the_page(made: Path) -> None:
    found = msgspec.json.decode((made / "report.json").read_bytes(), type=Assessment)
    name = "<b>&%2E.\"'</b>"
    tables = {name: found.tables["user"]}
    spread = {name: found.uncertainty.tables["user"]}
    changed = msgspec.structs.replace(
        found,
        tables=tables,
        uncertainty=msgspec.structs.replace(found.uncertainty, tables=spread),
        inputs=msgspec.structs.replace(found.inputs, logs={name: "<script>"}),
    )
    page = Page(render(changed))
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"Table {name}:" in " ".join(page.bare)
    plain = msgspec.to_builtins(changed)
    for key, text in page.figures:
        assert text == shown(key, at(plain, key))


def test_no_text_of_users_can_break_the_page(made: Path) -> None:
    """Of devices, ratings and warnings, which quote names and paths."""
    hostile = "<script>alert('1')</script><svg onload=\"x\"> & \"' {{ 7 * 7 }} ]]> -->"
    found = msgspec.json.decode((made / "report.json").read_bytes(), type=Assessment)
    swap = msgspec.structs.replace
    changed = swap(
        found,
        verdict=hostile,
        reasons=(hostile,),
        warnings=(hostile,),
        device=swap(found.device, name=hostile, source=hostile),
        endurance=swap(found.endurance, rating=hostile),
        dram=swap(found.dram, why=hostile),
        uncertainty=swap(found.uncertainty, not_known=(hostile,)),
    )
    plain, page, text = Page(render(found)), Page(render(changed)), render(changed)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name == "onload"]
    assert text.count("<svg") == 5
    assert dict(page.figures)["verdict"] == hostile
    assert dict(page.figures)["device.name"] == hostile


def test_a_path_of_any_bytes_is_reported(made: Path, tmp_path: Path) -> None:
    """What cannot be encoded was found out when all the work was done."""
    log = tmp_path / os.fsdecode(b"<script>\xff&.npz")
    device = tmp_path / os.fsdecode(b"\xfe.json")
    shutil.copy(made / "item.npz", log)
    shutil.copy(made / "device.json", device)
    page, numbers = tmp_path / os.fsdecode(b"p\xfd.html"), tmp_path / "p.json"
    status, said, errors = run(
        f"--log t={log} --row-bytes t=64 --device {device} --dram-price 3 --nvm-price 0.3 "
        f"--out {page} --json {numbers}"
    )
    assert (status, errors) == (0, "")
    assert "wrote" in said
    assert "&lt;script&gt;\\udcff&amp;.npz" in page.read_text("utf-8")
    found = msgspec.json.decode(numbers.read_bytes())
    assert found["inputs"]["logs"]["t"].endswith("<script>\\udcff&.npz")
    assert "\\udcfe.json" in found["device"]["source"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("advice.network.bits_per_second", 8.52e9, "8.52 Gb/s"),
        ("advice.network.bits_per_second", 3.2e5, "0.32 Mb/s"),
        ("advice.network.bytes_per_lookup", 2048.0, "2.00 KiB"),
        ("cost.saved_share", 0.7234, "72.3%"),
        ("cost.price_ratio", 0.1, "10.0%"),
        ("dram.table_bytes", 3 << 20, "3.00 MiB"),
        ("latency_us.p99", 871.3, "871 us"),
        ("latency_us.p99", 4498.1, "4.50 ms"),
        ("latency_us.requests_per_second", 20000.0, "20,000"),
        ("throughput.machines", None, "not known"),
        ("inputs.cache_bytes", None, "not given"),
        ("tables.x_bytes.rows", 12345, "12,345"),
        ("tables.x.gain", 2.0, "2"),
        ("tables.x.gain", 2.284, "2.28"),
        ("cost.ours", 0.000481, "0.000481"),
        ("tables.x.drift", 0.0312, "3.1%"),
        ("suited", True, "yes"),
        ("cost.saved_share", -0.2, "-20.0%"),
    ],
)
def test_how_figures_are_written(key: str, value: Any, text: str) -> None:
    assert shown(key, value) == text


def test_it_opens_in_a_browser_without_a_network(made: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed, none of {', '.join(BROWSERS)}")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}"),
        *("--dump-dom", (made / "report.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    shown_there, written = Page(done.stdout), Page((made / "report.html").read_text("utf-8"))
    assert shown_there.figures == written.figures
    assert sum(tag == "path" for tag, _ in shown_there.tags) > 50


ONE = "--log user=user.npz --dram-price 3 --nvm-price 0.3 --out new.html"
SIZED = f"{ONE} --row-bytes 128"


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (f"{SIZED}", 1, "which device?"),
        (f"{ONE} --device device.json", 1, "'user': how large are its rows?"),
        (f"{SIZED} --device no.json", 1, "no.json: cannot be read"),
        (f"{SIZED} --device damaged.json", 1, "damaged.json: damaged"),
        (f"{SIZED} --device-class ramdisk", 2, "'ramdisk' is not one of"),
        (f"{SIZED} --device device.json --rows user=9", 1, "the table has 9 rows"),
        (f"{SIZED} --device device.json --rows other=9", 1, "names table 'other'"),
        (f"{SIZED} --device device.json --json new.html", 1, "name the same file"),
        (f"{SIZED} --device device.json --json no/r.json", 1, "no is not a directory"),
        (f"{SIZED} --device device.json --nvm-price 0", 2, "x>0"),
        (f"{SIZED} --device device.json --scale 0.5", 2, "x>=1"),
        (f"{SIZED} --device device.json --scale 1e12", 1, "scale 1e+12"),
        (f"{SIZED} --device device.json --machine-dram 0", 1, "sizes above 0"),
        (f"{SIZED} --device device.json --network-gbps 0", 2, "x>0"),
        (f"{SIZED} --device device.json --machine-price -1", 2, "x>=0"),
        (f"{SIZED} --device device.json --dram-budget 4XB", 2, "'4XB' is not a size"),
        (f"{SIZED} --device device.json --rating-dwpd 1 --rating-tbw 1", 2, "and not both"),
        (f"{SIZED} --device device.json --tables user=no.npy", 1, "no.npy: cannot be opened"),
        (SIZED.replace("user.npz", "no.npz") + " --device device.json", 1, "no.npz: no such file"),
        (SIZED.replace("new.html", "no/r.html") + " --device device.json", 1, "no is not a dir"),
        (SIZED.replace("new.html", ".") + " --device device.json", 1, "is no ordinary file"),
        (SIZED.replace("user.npz", "few.npz") + " --device device.json", 1, "too short to judge"),
    ],
)
def test_errors_are_named_and_leave_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, options: str, status: int, says: str
) -> None:
    monkeypatch.chdir(made)
    AccessLog.from_requests([[1, 2]] * 100).write(made / "few.npz")
    before = sorted(made.rglob("*"))
    code, said, errors = run(options)
    assert (code, said) == (status, "")
    assert says in errors
    if status == 1:
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_what_a_page_needs_is_looked_for_before_the_work(
    made: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setitem(sys.modules, missing, None)
    status, said, errors = run(f"{SIZED} --device device.json")
    assert (status, said) == (1, "")
    assert "pip install 'bandana-kv[report]'" in errors
    assert not (made / "new.html").exists()
