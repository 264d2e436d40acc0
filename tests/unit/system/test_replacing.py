"""Files at paths of users: beside others' files and links, with their permissions, all or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.assess import device_class
from bandana_kv.assess.data import write_text
from bandana_kv.disk.placement import Placement
from bandana_kv.disk.plan import Plan
from bandana_kv.system import durable

LOG = AccessLog.from_requests([[0, 1], [2]])
WRITERS: dict[str, Callable[[Path], object]] = {
    "log.npz": LOG.write,
    "log.parquet": LOG.write,
    "profile.json": device_class("nvme-p3700").profile().write,
    "placement": Placement(np.arange(5, dtype=np.uint32), 2, "identity").save,
    "plan.json": Plan(1, 0, 0, {}).write,
    "page.html": lambda path: write_text(path, "<p>"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_names_that_could_be_guessed_are_not_written_through(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    pid = os.getpid()
    guesses = [f".{name}.{pid}.partial", f".{name}.{pid}", f"{name}.new", f".{name}.new"]
    for guess in guesses:
        (tmp_path / guess).symlink_to(victim)
    WRITERS[name](tmp_path / name)
    assert victim.read_text() == "precious"
    assert {each.name for each in tmp_path.iterdir()} == {name, "victim", *guesses}
    assert (tmp_path / name).stat().st_size


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("name", WRITERS)
def test_permissions_are_what_the_user_wants_of_new_files(
    tmp_path: Path, name: str, mask: int
) -> None:
    before = os.umask(mask)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with durable.replacing(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
