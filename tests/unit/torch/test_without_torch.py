"""The library without torch, which only this room and readers of checkpoints ask for."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['torch'] = None; import bandana_kv\n"


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_extra_is_named() -> None:
    code = """
from bandana_kv.errors import MissingExtraError
for ask in (lambda: bandana_kv.torch, lambda: __import__("bandana_kv.torch")):
    try:
        ask()
    except MissingExtraError as error:
        print(error)
"""
    said = "bandana_kv.torch needs torch: pip install 'bandana-kv[torch]'\n"
    assert printed(code) == 2 * said


def test_all_else_goes_without_it(tmp_path: object) -> None:
    code = f"""
import numpy as np
path = {str(tmp_path)!r} + "/store"
bandana_kv.load(path, {{"t": np.ones((9, 4), "f4")}}, adapter="blockfile", placement="identity")
with bandana_kv.open(path) as store:
    print(store.get("t", 3))
"""
    assert printed(code) == "[1. 1. 1. 1.]\n"


def test_it_is_there_without_being_imported() -> None:
    code = (
        "import sys, bandana_kv; print('torch' in sys.modules);"
        "import importlib.util;"
        "print(importlib.util.find_spec('torch') is None or bool(bandana_kv.torch.Embedding))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"
