"""Versions of a store directory: who may write, what is kept, what is cleared away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk import lock, manifest, retention
from bandana_kv.errors import FormatError, InputError, LoadInProgressError
from bandana_kv.plan import PlannedPoint, TablePlan
from bandana_kv.progress import Progress
from bandana_kv.serve import opener

ROWS = np.arange(640, dtype=np.float32).reshape(20, 32)


def load(path: Path, **options: object) -> int:
    return bandana_kv.load(path, {"user": ROWS}, adapter="memory", **options)


class Meanwhile(Progress):
    """Calls something in the middle of a load."""

    def __init__(self, call: object) -> None:
        self.call = call

    def advance(self, count: int) -> None:
        self.call()


def refused_while_loading(path: Path) -> int:
    """Try to load again in the middle of a load; return how often that was refused."""
    refused = 0

    def try_again() -> None:
        nonlocal refused
        with pytest.raises(LoadInProgressError, match="wait for it or stop it"):
            load(path)
        refused += 1

    # twice: what is refused must not let the next one in
    load(path, progress=Meanwhile(lambda: (try_again(), try_again())))
    return refused


def test_one_load_at_a_time_also_when_it_is_the_first(tmp_path: Path) -> None:
    assert refused_while_loading(tmp_path / "s") == 2
    assert refused_while_loading(tmp_path / "s") == 2
    with bandana_kv.open(tmp_path / "s") as store:
        assert store.version == 2


def test_a_lock_whose_file_was_removed_keeps_nobody_out(tmp_path: Path) -> None:
    """A failed first load removes its lock file; who had opened it must not rely on it."""
    load(tmp_path / "s")
    real_flock = lock.fcntl.flock
    calls = 0

    def remove_then_lock(handle: int, how: int) -> None:
        nonlocal calls
        calls += bool(how & lock.fcntl.LOCK_NB)  # for the ledger it waits
        if calls == 1:
            (tmp_path / "s" / "lock").unlink()
        real_flock(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock.fcntl, "flock", remove_then_lock)
        load(tmp_path / "s")
    assert calls == 2
    assert (tmp_path / "s" / "lock").exists()


def test_three_loads_keep_two_versions(tmp_path: Path) -> None:
    for _ in range(3):
        load(tmp_path / "s")
    kept = [
        sorted(path.name for path in (tmp_path / "s" / what).iterdir())
        for what in ("manifests", "segments")
    ]
    assert kept == [["000002.json", "000003.json"], ["000002", "000003"]]


def test_a_segment_lives_as_long_as_a_version_uses_it(tmp_path: Path) -> None:
    load(tmp_path / "s")
    for _ in range(3):
        bandana_kv.load(tmp_path / "s", {"item": ROWS + 1}, adapter="memory")
    segments = sorted(path.name for path in (tmp_path / "s" / "segments").iterdir())
    assert segments == ["000001", "000003", "000004"]
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", range(20)), ROWS)
        assert np.array_equal(store.multi_get("item", range(20)), ROWS + 1)


def test_an_open_store_outlives_the_version_it_serves(tmp_path: Path) -> None:
    for adapter in ("lmdb", "rocksdb"):
        path = tmp_path / adapter
        bandana_kv.load(path, {"user": ROWS}, adapter=adapter)
        with bandana_kv.open(path, cache_bytes=0) as store:
            for add in (1, 2, 3):
                bandana_kv.load(path, {"user": ROWS + add}, adapter=adapter)
            assert np.array_equal(store.multi_get("user", range(20)), ROWS)
            store.check()


@pytest.mark.parametrize("moment", ["before it is held", "before its engine is opened"])
def test_a_version_that_is_being_opened_is_held_or_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter="lmdb")
    module, name = {
        "before it is held": (retention, "_shared_lock"),
        "before its engine is opened": (opener.adapters, "open_existing"),
    }[moment]
    original = getattr(module, name)

    def two_loads_come_first(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(module, name, original)
        for add in (1, 2):
            bandana_kv.load(tmp_path / "s", {"user": ROWS + add}, adapter="lmdb")
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, two_loads_come_first)
    with bandana_kv.open(tmp_path / "s") as store:
        held = moment == "before its engine is opened"
        assert store.version == (1 if held else 3)
        expected = ROWS if held else ROWS + 2
        assert np.array_equal(store.multi_get("user", range(20)), expected)


def test_directories_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "segments" / "000001").mkdir(parents=True)
    with pytest.raises(InputError, match="is no store"):
        load(tmp_path / "theirs")
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "CURRENT").write_text("MANIFEST-000005\n")
    with pytest.raises(FormatError, match="damaged"):
        load(tmp_path / "database")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == [
        "database",
        "database/CURRENT",
        "theirs",
        "theirs/segments",
        "theirs/segments/000001",
    ]


def test_an_older_format_says_to_load_again_elsewhere(tmp_path: Path) -> None:
    load(tmp_path / "s")
    (path,) = (tmp_path / "s" / "manifests").glob("*.json")
    older = manifest.msgspec.json.decode(path.read_bytes())["manifest"] | {"format": 1}
    body = manifest.msgspec.json.encode(older)
    checksum = manifest.xxhash.xxh3_64_hexdigest(body)
    path.write_bytes(manifest.msgspec.json.encode({"checksum": checksum, "manifest": older}))
    assert manifest.FORMAT_VERSION == 7
    said = r"format 1 is older .* \(7\); load the tables again into another directory"
    with pytest.raises(FormatError, match=said):
        bandana_kv.open(tmp_path / "s")
    with pytest.raises(FormatError, match=said):
        load(tmp_path / "s")
    load(tmp_path / "t")
    with bandana_kv.open(tmp_path / "t") as store:
        assert np.array_equal(store.multi_get("user", range(20)), ROWS)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    policy = Policy("tinylfu", Admission("threshold", 7), half_life=12.5, seed_weight=0.25)
    load(tmp_path / "s", policy=policy)
    table = manifest.read_current(tmp_path / "s").tables["user"]
    assert table.plan == TablePlan((PlannedPoint(20, policy, None),))
    with bandana_kv.open(tmp_path / "s") as store:
        assert store.policy("user") == policy


def test_a_plan_whose_numbers_are_out_of_range_is_refused(tmp_path: Path) -> None:
    load(tmp_path / "s")
    current = manifest.read_current(tmp_path / "s")
    replace = manifest.msgspec.structs.replace
    for wrong in (
        Policy(half_life=0.0),
        Policy(half_life=1e10),
        Policy(seed_weight=-1.0),
        Policy("lru", Admission("threshold")),
        Policy("lru", Admission("all", 3)),
        Policy("lru", Admission("threshold", -1)),
    ):
        plan = TablePlan((PlannedPoint(5, wrong, None),))
        table = replace(current.tables["user"], plan=plan)
        manifest.switch_to(tmp_path / "s", replace(current, tables={"user": table}))
        with pytest.raises(FormatError, match="out of range"):
            bandana_kv.open(tmp_path / "s")


def test_a_manifest_whose_numbers_contradict_each_other_is_refused(tmp_path: Path) -> None:
    load(tmp_path / "s")
    current = manifest.read_current(tmp_path / "s")
    table = current.tables["user"]
    replace = manifest.msgspec.structs.replace
    for wrong in (
        {"rows": 0},
        {"segment": 7},
        {"space": current.next_space},
        {"pages": 2},
        {"rows_per_block": 5000},
        {"looked_up_rows": 21},
    ):
        tables = {"user": replace(table, **wrong)}
        manifest.switch_to(tmp_path / "s", replace(current, tables=tables))
        with pytest.raises(FormatError, match="contradict"):
            bandana_kv.open(tmp_path / "s")


def test_a_flipped_digit_is_noticed_by_the_checksum(tmp_path: Path) -> None:
    """Still a manifest, whose numbers go together: the table would be read as another's."""
    load(tmp_path / "s")
    path = manifest.manifest_path(tmp_path / "s", 1)
    text = path.read_bytes()
    assert text.count(b'"looked_up_rows": 20') == 1
    path.write_bytes(text.replace(b'"looked_up_rows": 20', b'"looked_up_rows": 10'))
    with pytest.raises(FormatError, match="checksum does not match"):
        manifest.read_version(tmp_path / "s", 1)


def test_a_number_that_only_litter_bears_is_not_given_again(tmp_path: Path) -> None:
    """Blocks that a killed load has left, or a reader holds, are not to be taken for new ones."""
    load(tmp_path / "s")
    manifest.segment_path(tmp_path / "s", 7).mkdir()
    assert manifest.next_version(tmp_path / "s") == 8
