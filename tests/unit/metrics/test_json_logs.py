"""What the library logs, as lines of JSON."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.logs import JsonFormatter
from bandana_kv.serve.breaker import Breaker

ROWS = np.random.default_rng(0).random((1000, 32), np.float32)
SOURCE = Path(bandana_kv.__file__).parent


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the library logs from now on."""
    log, stream = logging.getLogger("bandana_kv"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)
    log.setLevel(level)


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_switch_is_one_line(tmp_path: Path, lines: io.StringIO) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"user": ROWS}, adapter="memory", placement="identity")
    with bandana_kv.open(path) as store:
        store.refresh()
        bandana_kv.load(path, {"user": ROWS}, adapter="memory", placement="identity")
        store.refresh()
    switches = [line for line in parsed(lines) if line["event"] == "version_switched"]
    assert len(switches) == 1
    assert switches[0]["level"] == "INFO"
    assert switches[0]["fields"] == {"store": str(path), "from": 1, "to": 2}
    assert switches[0]["message"] == f"{path}: version 1 -> 2"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", switches[0]["time"])


def test_the_same_version_opened_anew_is_no_switch(tmp_path: Path, lines: io.StringIO) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"user": ROWS}, adapter="blockfile", placement="identity")
    with bandana_kv.open(path) as reader, bandana_kv.open(path) as writer:
        before = reader._current.serving
        writer.update("user", [3], ROWS[:1])
        writer.flush()
        reader.refresh()
        assert reader._current.serving is not before
        assert np.array_equal(reader.get("user", 3), ROWS[0])
    assert "version_switched" not in {line["event"] for line in parsed(lines)}


def test_the_breaker_says_its_state(lines: io.StringIO) -> None:
    breaker = Breaker("table 'user'")
    for _ in range(5):
        breaker.failed()
    (line,) = parsed(lines)
    assert (line["level"], line["event"]) == ("WARNING", "breaker")
    assert line["fields"] == {"of": "table 'user'", "state": "open"}


def test_exceptions_and_odd_values_stay_on_their_line(lines: io.StringIO) -> None:
    log = logging.getLogger("bandana_kv")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        fields = {"event": "odd", "path": Path("x"), "nan": float("nan"), "array": ROWS[0, :1]}
        log.exception("went %s", "wrong\n", extra=fields)
    log.warning("plain")
    odd, plain = parsed(lines)
    assert odd["message"] == "went wrong\n"
    assert odd["exception"].startswith("Traceback")
    assert odd["exception"].endswith("ValueError: two\nlines")
    assert odd["fields"] == {"path": "x", "nan": None, "array": str(ROWS[0, :1])}
    assert plain["event"] is None
    assert plain["fields"] == {}
    assert "exception" not in plain


def log_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            if isinstance(of, ast.Name) and of.id == "_log":
                yield node


def test_every_log_call_has_fields() -> None:
    calls = [(path, call) for path in SOURCE.rglob("*.py") for call in log_calls(path)]
    assert len(calls) > 10
    for path, call in calls:
        given = {keyword.arg for keyword in call.keywords}
        assert "extra" in given, f"{path.name}, line {call.lineno}: no extra={{'event': ...}}"
