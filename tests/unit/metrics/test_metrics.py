"""What a store says of itself: the same numbers for tests, Prometheus and the dashboard."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import bandana_kv
from bandana_kv import AccessLog, EmbeddingStore
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.care.drift import Watch
from bandana_kv.disk import ledger
from bandana_kv.disk.ledger import DAY_S, Entry
from bandana_kv.disk.plan import PLAN_FORMAT
from bandana_kv.errors import AdapterError, InputError, MissingExtraError
from bandana_kv.metrics import UPPER_SECONDS, Buckets, Labelled, Metric, metric
from bandana_kv.metrics.exporter import Collector, serve
from bandana_kv.plan import Choice, Plan, Predicted, TablePlan
from bandana_kv.rollout import Rollout
from bandana_kv.serve.metrics import Wear

ROWS = np.random.default_rng(0).random((3000, 32), np.float32)
EVERY = np.arange(3000)
LRU = Policy("lru", Admission("none"))
DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "bandana-kv.json"
DRAM = 200_000


def load(path: Path, adapter: str | MemoryAdapter = "memory", **tables: np.ndarray) -> int:
    return bandana_kv.load(path, tables, adapter=adapter, placement="shuffled", policy=LRU)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    load(tmp_path / "s", user=ROWS, item=-ROWS)
    return tmp_path / "s"


def told(measured: Any) -> dict[tuple[str, ...], Any]:
    """Return values by name, without what all begin with, and labels."""
    return {
        (each.name.removeprefix("bandana_kv_"), *each.labels.values()): each.value
        for each in measured.metrics()
    }


def counters(store: EmbeddingStore) -> dict[tuple[str, ...], float]:
    """Return all that may only rise, histograms by their counts."""
    found: dict[tuple[str, ...], float] = {}
    for each in store.metrics():
        key = (each.name, *each.labels.values())
        if isinstance(each.value, Buckets):
            found |= {(*key, str(at)): count for at, count in enumerate(each.value.counts)}
        elif each.kind == "counter":
            found[key] = each.value
    return found


def test_the_visitor_says_what_stats_says(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        for _ in range(3):
            store.multi_get("user", EVERY[:300])
        values = told(store)
        for table, stats in store.stats().items():
            stats["read_bytes"] = stats.pop("bytes_read")
            for name, count in stats.items():
                assert values[name, table] == count
            assert values["cache_capacity_rows", table] == store.capacity_rows(table)
        assert values["lookups", "user"] == 900
        assert (values["requests", "user"], values["requests", "item"]) == (3, 0)
        assert values["cached_rows", "user"] == 300
        assert values["cache_bytes", "user"] + values["cache_bytes", "item"] == store.cache_bytes
        assert values["version",] == 1


def test_a_wait_is_counted_for_each_request_that_reads(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        for _ in range(5):
            store.multi_get("user", EVERY[:300])
        store.multi_get("user", EVERY[300:310])
        waits = told(store)["miss_latency_seconds", "user"]
        assert waits.upper == UPPER_SECONDS
        assert sum(waits.counts) == 2
        assert 0 < waits.total < 2 * UPPER_SECONDS[-1]
        least = sum(low * count for low, count in zip((0, *waits.upper), waits.counts, strict=True))
        assert least <= waits.total


def test_counts_of_many_threads_are_exact(path: Path) -> None:
    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            store.multi_get("user", rng.integers(0, 3000, 5))

    with bandana_kv.open(path, cache_bytes=20_000) as store:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        values = told(store)
        assert (values["requests", "user"], values["lookups", "user"]) == (1600, 8000)
        assert 0 < sum(values["miss_latency_seconds", "user"].counts) <= 1600


def test_counters_only_rise_while_versions_are_switched(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        before = counters(store)
        for number in range(4):
            store.multi_get("user", EVERY[:500])
            store.multi_get("item", EVERY[:100])
            load(path, user=ROWS + number)
            store.refresh()
            gc.collect()
            now = counters(store)
            assert now.keys() == before.keys()
            assert all(now[name] >= before[name] for name in now)
            before = now
        assert store.stats()["user"]["lookups"] == 0
        values = told(store)
        assert values["lookups", "user"] == 2000
        assert values["requests", "user"] == 4
        assert values["lookups", "item"] == 400
        assert values["block_reads", "user"] >= 4
        assert values["version",] == 5
        assert len(store._options.totals._held) == 2, "counts of tables that are gone pile up"


def test_what_tables_counted_stays_when_they_go(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        load(path, other=ROWS * 2)
        store.refresh()
        store.multi_get("other", EVERY[:7])
        bandana_kv.rollback(path)
        store.refresh()
        values = told(store)
        assert values["lookups", "other"] == 7
        assert ("cached_rows", "other") not in values


class Slow(MemoryAdapter):
    """Holds reads until its gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def multi_get(self, *arguments: Any, **named: Any) -> Any:
        self.entered.set()
        self.gate.wait()
        return super().multi_get(*arguments, **named)


def test_a_call_that_ends_on_a_retired_version_is_counted(tmp_path: Path) -> None:
    engine = Slow()
    load(tmp_path / "s", engine, user=ROWS)
    with bandana_kv.open(tmp_path / "s", cache_bytes=DRAM, adapter=engine) as store:
        inside = threading.Thread(target=store.multi_get, args=("user", EVERY[:50]))
        inside.start()
        engine.entered.wait()
        load(tmp_path / "s", engine, user=ROWS + 1)
        store.refresh(warm_seconds=0)
        before = told(store)["block_reads", "user"]
        engine.gate.set()
        inside.join()
        gc.collect()
        assert before == 0
        assert store.stats()["user"]["block_reads"] == 0
        assert told(store)["lookups", "user"] == 50
        assert told(store)["block_reads", "user"] > 0


def test_a_failed_refresh_says_nothing_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        store.multi_get("user", EVERY[:9])
        before = counters(store)
        load(path, other=ROWS)
        monkeypatch.setattr(bandana_kv.serve.current, "warm_up", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.refresh()
        gc.collect()
        assert counters(store) == before


def test_a_forked_child_goes_on_from_its_parent(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        store.multi_get("user", EVERY[:9])
        load(path, user=ROWS + 1)
        store.refresh()
        with store._options.totals._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                store.multi_get("user", EVERY[:1])
                os._exit(int(told(store)["lookups", "user"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        assert told(store)["lookups", "user"] == 9


def load_planned(path: Path, adapter: str) -> None:
    predicted = Predicted(0.25, 0.2, 0.3, 0.5, 0.1)
    choice = Choice(DRAM, 100, "identity", 0, LRU, predicted, ("lru", 0.3), 0.8, "why")
    plan = Plan(PLAN_FORMAT, DRAM, 0, {"user": TablePlan((), 1000, choice)})
    log = AccessLog.from_requests([EVERY])
    bandana_kv.load(path, {"user": ROWS}, {"user": log}, adapter=adapter, plan=plan)


def test_a_plan_predicts_for_its_own_dram_only(tmp_path: Path) -> None:
    load_planned(tmp_path / "s", "memory")
    with bandana_kv.open(tmp_path / "s") as store:
        values = told(store)
        assert values["predicted_reads_per_lookup", "user"] == 0.25
        assert values["predicted_reads_per_lookup_low", "user"] == 0.2
        assert values["predicted_reads_per_lookup_high", "user"] == 0.3
    for other in ({"cache_bytes": DRAM // 2}, {"policy": Policy("sieve", Admission("none"))}):
        with bandana_kv.open(tmp_path / "s", **other) as store:
            assert ("predicted_reads_per_lookup", "user") not in told(store)


def test_updates_that_are_pending_are_told(tmp_path: Path) -> None:
    load(tmp_path / "s", "blockfile", user=ROWS)
    with bandana_kv.open(tmp_path / "s", cache_bytes=DRAM) as store:
        assert ("journal_bytes",) not in told(store)
        store.update("user", [3, 5], ROWS[:2])
        pending = told(store)
        assert pending["updates_pending_bytes", "user"] >= 2 * 128
        assert pending["journal_bytes",] >= pending["journal_written_bytes",] >= 2 * 128
        assert pending["flushed_bytes",] == 0
        store.flush()
        flushed = told(store)
        assert flushed["updates_pending_bytes", "user"] == 0
        assert flushed["journal_bytes",] < pending["journal_bytes",]
        assert flushed["journal_written_bytes",] == pending["journal_written_bytes",]
        assert flushed["flushed_bytes",] >= 4096


def test_the_ledger_is_told_and_seldom_read(path: Path) -> None:
    now = [0.0]
    wear = Wear(path, lambda: now[0])
    loaded = told(wear)["last_day_written_bytes",]
    assert ("write_budget_bytes",) not in told(wear)
    bandana_kv.set_write_budget(path, 1 << 40)
    first = ledger.entries(path)[0]
    for entry_time, size in ((first.time, 1000), (first.time - 2 * DAY_S, 10**9)):
        ledger.note(path, Entry(entry_time, "load", 1, ("user",), size, size, 1.0))
    now[0] = 9.9
    assert told(wear) == {("last_day_written_bytes",): loaded}
    now[0] = 10.0
    assert told(wear) == {
        ("last_day_written_bytes",): loaded + 1000,
        ("write_budget_bytes",): 1 << 40,
        ("write_budget_left_bytes",): (1 << 40) - loaded - 1000,
    }
    (path / "write-budget.json").write_text("{")
    now[0] = 30.0
    assert told(wear) == {}


def test_a_closed_store_still_says_what_it_counted(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        store.multi_get("user", EVERY[:9])
        before = told(store)
    assert told(store) == before


def scraped(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_scrapes_what_the_store_says(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store, serve(0, store) as exporter:
        store.multi_get("user", EVERY[:100])
        store.multi_get("user", EVERY[:100])
        user = ("table", "user")
        samples = scraped(exporter.port)
        assert samples["bandana_kv_lookups_total", frozenset({user})] == 200
        assert samples["bandana_kv_cached_rows", frozenset({user})] == 100
        assert samples["bandana_kv_version", frozenset()] == 1
        assert samples["bandana_kv_miss_latency_seconds_count", frozenset({user})] == 1
        waits = told(store)["miss_latency_seconds", "user"]
        assert samples["bandana_kv_miss_latency_seconds_sum", frozenset({user})] == waits.total
        every = ("bandana_kv_miss_latency_seconds_bucket", frozenset({user, ("le", "+Inf")}))
        assert samples[every] == 1
        store.multi_get("user", EVERY[:100])
        assert scraped(exporter.port)["bandana_kv_lookups_total", frozenset({user})] == 300
    with pytest.raises(OSError, match="refused"):
        scraped(exporter.port)


class Fixed:
    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def metrics(self) -> tuple[Metric, ...]:
        return self._metrics


def test_buckets_are_added_up_for_prometheus() -> None:
    histogram = metric("wait_seconds", "histogram", "Waits", Buckets((0.1, 1.0), (3, 2, 1), 7.5))
    registry = CollectorRegistry()
    registry.register(Collector(Fixed(histogram)))
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert found == {
        ("bandana_kv_wait_seconds_bucket", "0.1"): 3,
        ("bandana_kv_wait_seconds_bucket", "1.0"): 5,
        ("bandana_kv_wait_seconds_bucket", "+Inf"): 6,
        ("bandana_kv_wait_seconds_count", None): 6,
        ("bandana_kv_wait_seconds_sum", None): 7.5,
    }


def test_two_stores_are_told_apart_by_a_label() -> None:
    one, two = (Fixed(metric("version", "gauge", "Version", number)) for number in (1, 2))
    families = list(Collector(Labelled(one, store="a"), Labelled(two, store="b")).collect())
    assert [family.name for family in families] == ["bandana_kv_version"]
    samples = {sample.labels["store"]: sample.value for sample in families[0].samples}
    assert samples == {"a": 1, "b": 2}


def test_names_hostile_to_labels_are_scraped_as_they_are() -> None:
    names = ['a"b', "a\nb", "a\\b", '\\n"\n\\', '"} 7\nx{table="', "<script>", "\u2028\r\0", ""]
    said = 'of \\ and "\nlines'
    hostile = Fixed(*(metric("x", "gauge", said, at, table=name) for at, name in enumerate(names)))
    with serve(0, hostile) as served:
        assert served._server.server_address[0] == "127.0.0.1"  # nobody else's business
        found = scraped(served.port)
    assert found == {
        ("bandana_kv_x", frozenset({("table", name)})): at for at, name in enumerate(names)
    }


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"{port} cannot be listened on"):
            serve(port)
    with pytest.raises(InputError, match="99999"):
        serve(99999)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for begin in (lambda: serve(0), Collector):
        with pytest.raises(MissingExtraError, match=r"pip install 'bandana-kv\[metrics\]'"):
            begin()


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]["query"]


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    assert [each["name"] for each in dashboard["__inputs"]] == ["DS_PROMETHEUS"]
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["instance", "table"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for box in (panel["gridPos"] for panel in panels)
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${DS_PROMETHEUS}"
            assert panel["targets"]
    for query in queries(dashboard):
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}")


def test_the_dashboard_asks_only_for_what_is_told(
    dashboard: dict[str, Any], tmp_path: Path
) -> None:
    load_planned(tmp_path / "s", "blockfile")
    bandana_kv.set_write_budget(tmp_path / "s", 1 << 40)
    with bandana_kv.open(tmp_path / "s") as store:
        store.update("user", [1], ROWS[:1])
        with (
            store.record(tmp_path / "recorded") as recorder,
            Rollout(lambda _, ids: ROWS[ids], store, stage="shadow") as rollout,
        ):
            rollout.set_stage("full")
            watch = Watch(tmp_path / "s", {"user": AccessLog.from_requests([EVERY] * 200)})
            watch.look()
            parts = (store, recorder, rollout, watch)
            all_told = [each for part in parts for each in part.metrics()]
    kinds = {each.name: each.kind for each in all_told}
    labels = {each.name: set(each.labels) for each in all_told}
    for query in queries(dashboard):
        for name, selector in re.findall(r"(bandana_kv_\w+)({[^}]*})?", query):
            of = re.sub(r"_(total|bucket|count|sum)$", "", name)
            assert of in kinds, query
            ending = name.removeprefix(of)
            endings = {"counter": "_total", "gauge": "", "histogram": "_(bucket|count|sum)"}
            assert re.fullmatch(endings[kinds[of]], ending), query
            assert "table=" not in selector or "table" in labels[of], query


def test_metrics_are_plain_data(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=DRAM) as store:
        metrics = store.metrics()
        assert msgspec.json.decode(msgspec.json.encode(metrics), type=list[Metric]) == metrics
        assert len({(each.name, *each.labels.items()) for each in metrics}) == len(metrics)
        kinds = {each.name: (each.kind, each.help) for each in metrics}
        assert all((each.kind, each.help) == kinds[each.name] for each in metrics)


def test_a_failed_engine_is_counted(tmp_path: Path) -> None:
    class Broken(MemoryAdapter):
        broken = False

        def multi_get(self, *arguments: Any, **named: Any) -> Any:
            if self.broken:
                raise AdapterError("broken")
            return super().multi_get(*arguments, **named)

    engine = Broken()
    load(tmp_path / "s", engine, user=ROWS)
    with bandana_kv.open(
        tmp_path / "s", cache_bytes=DRAM, adapter=engine, fallback=lambda _, ids: ROWS[ids]
    ) as store:
        engine.broken = True
        for first in range(0, 1000, 10):
            store.multi_get("user", EVERY[first : first + 10])
        values = told(store)
        assert values["fallback_rows", "user"] == 1000
        assert values["breaker_open", "user"] == values["breaker_openings", "user"] == 1
        assert values["bad_blocks", "user"] > 0
