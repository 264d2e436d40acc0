"""What is meant by the name of a file, with or without what is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.errors import InputError
from bandana_kv.rows.files import FORMS, open_rows
from bandana_kv.rows.member import split
from bandana_kv.tools.load_tables import main

ROWS = np.random.default_rng(0).random((300, 8), np.float32)


@pytest.mark.parametrize(
    ("given", "path", "member"),
    [
        ("a.npy", "a.npy", ""),
        ("a.npz:x", "a.npz", "x"),
        ("a.npz:", "a.npz", ""),
        ("no.npz:x:y", "no.npz", "x:y"),
        ("a:b.npz", "a:b.npz", ""),
        ("a:b.npz:x", "a:b.npz", "x"),
        ("a.bin:f4:3x2", "a.bin", "f4:3x2"),
        (":x", ":x", ""),
        ("", ".", ""),
        ("nul\0:x", "nul\0", "x"),
    ],
)
def test_the_longest_path_at_which_something_lies(
    given: str, path: str, member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "a.npz", "a:b.npz", "a.bin"):
        Path(name).touch()
    assert split(given) == (Path(path), member)


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.csv:user", "rows.csv:f4:3"])
def test_a_kind_that_is_not_read_lists_those_that_are(name: str) -> None:
    with pytest.raises(InputError) as raised:
        open_rows("user", name)
    assert str(raised.value).startswith(
        f"table 'user': {name.split(':', maxsplit=1)[0]} is of no kind"
    )
    assert FORMS in str(raised.value)


def test_an_npy_file_has_no_members(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InputError, match="is one array; leave ':x' out"):
        open_rows("user", f"{tmp_path / 'a.npy'}:x")


def test_suffixes_of_any_case(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=ROWS)
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    with open_rows("user", tmp_path / "A.NPZ") as source:
        assert source.rows == 300


def test_the_command_takes_what_is_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS, y=ROWS + 1)
    arguments = ["--table", f"user={tmp_path / 'a.npz'}:y", str(tmp_path / "s")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", range(300)), ROWS + 1)


def test_the_help_says_which_forms_there_are() -> None:
    said = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert ".safetensors:TENSOR" in said
    assert "FILE:DTYPE:ROWSxDIM" in said
