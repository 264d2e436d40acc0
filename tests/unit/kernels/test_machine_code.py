"""What is kept of compiled kernels is what it says, whoever else writes, dies or upgrades."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from bandana_kv.kernels.machine_code import _CacheFile

KEYS = 25


def cache(directory: Path, release: int = 1) -> _CacheFile:
    return _CacheFile(str(directory), "kernel", (0.0, release))


def save_many(directory: Path, process: int) -> None:
    for number in range(KEYS):
        cache(directory).save((process, number), f"code of {process}, {number}")


def test_processes_that_compile_at_once_keep_each_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=save_many, args=(tmp_path, each)) for each in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for key in ((process, number) for process in range(4) for number in range(KEYS)):
        assert cache(tmp_path).load(key) == "code of {}, {}".format(*key)


def test_killed_between_index_and_code_nothing_old_is_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path, release=1).save("types", "old code")
    with monkeypatch.context() as patch:
        patch.setattr(_CacheFile, "_save_data", lambda *_: None)
        cache(tmp_path, release=2).save("types", "new code")
    assert cache(tmp_path, release=2).load("types") is None
    cache(tmp_path, release=2).save("types", "new code")
    assert cache(tmp_path, release=2).load("types") == "new code"


def test_what_is_saved_again_replaces(tmp_path: Path) -> None:
    for code in ("one", "other"):
        cache(tmp_path).save("types", code)
    assert cache(tmp_path).load("types") == "other"
    assert len(list(tmp_path.glob("*.nbc"))) == 1
