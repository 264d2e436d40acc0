"""Every Python example of the README and the docs runs as printed."""

import importlib.util
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from bandana_kv import AccessLog, errors
from bandana_kv.assess.performance import calibration

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Examples of a page run in order, in a directory with ``rows.npy`` and ``log.npz``."""
    if "import torch" in page.read_text() and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: make test-torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)  # how precise it is, others test
    np.save("rows.npy", rng.random((1000, 32), dtype=np.float32))
    requests = (rng.zipf(1.3, rng.integers(1, 30)) % 1000 for _ in range(300))
    AccessLog.from_requests(requests).write("log.npz")
    names: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        if page.name == "graphs.md":
            warnings.simplefilter("ignore")  # PyG's own, of what torch calls deprecated
            with_sampler(monkeypatch)
        for example in examples(page):
            exec(compile(example, page.name, "exec"), names)  # noqa: S102 - that is the test


def with_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyG sample as in bench/sampling.py: pyg-lib and torch-sparse are not on every machine."""
    pytest.importorskip("torch_geometric", reason="PyG is not installed: make test-torch")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sampler = importlib.import_module("sampling").NumpySampler
    own = importlib.import_module("torch_geometric.sampler").NeighborSampler
    monkeypatch.setattr(own, "rng", np.random.default_rng(0), raising=False)
    for name in ("_sample", "_sample_typed"):
        monkeypatch.setattr(own, name, getattr(sampler, name), raising=False)


def test_pages_have_examples() -> None:
    assert len(examples(ROOT / "README.md")) >= 1


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_operations_say_what_to_do_about_every_error() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in errors.__all__:
        assert f"`{name}`" in page, f"operations.md does not say what {name} means"
