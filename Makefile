# make setup | demo | cluster-demo | test | test-torch | test-all | torture | lint | figures-check | docs | bench | clean
# Every target sets up what it needs. Another interpreter: make PYTHON=/path/to/python3.12 setup
# Demo on your own log: make demo LOG=path/to/log.npz [ORDERED=1]

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
EXTRAS := dev
VERSIONS := 3.11 3.12 3.13 3.14

# pip into the virtual environment $(1); setuptools first, so that the pinned one builds
install = $(1)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools && \
	$(1)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
	--no-build-isolation -e '.[$(EXTRAS)]'

.PHONY: setup demo cluster-demo test test-torch test-all torture lint figures-check docs bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bandana-kv needs Python 3.11 or newer, and '$(PYTHON)' is not one:" \
	       "say make PYTHON=/path/to/python3.11 (or newer)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  version=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $$version"; export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq && apt-get install -y -qq $$version >/dev/null; \
	  else echo "python3's venv is missing: apt-get install $$version" >&2; exit 1; fi; }
	@command -v fio >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    export DEBIAN_FRONTEND=noninteractive; \
	    { apt-get update -qq && apt-get install -y -qq fio; } >/dev/null 2>&1; fi; \
	  command -v fio >/dev/null || \
	    echo "note: fio is missing, only profiling a device needs it: apt-get install fio"; }
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV)"
	@$(call install,$(VENV))
	@$(PY) tools/compile_kernels.py
	@$(PY) -m compileall -qq bandana_kv adapters tools
	@touch $@

demo: $(STAMP)
	@$(PY) tools/demo.py $(if $(LOG),--log '$(LOG)') $(if $(ORDERED),--ordered)

# three primaries and three replicas of a real server on loopback; one is killed, another freezes
cluster-demo: $(STAMP)
	@$(PY) tools/cluster_demo.py

# A process more than two cores can use: much of what tests do is waiting for others that end.
TEST_PROCESSES ?= 3
# the report of tools/assess.py is opened in a browser; without one that test is skipped
test: $(STAMP)
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium"; export DEBIAN_FRONTEND=noninteractive; \
	    { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1; fi; \
	  command -v chromium >/dev/null || \
	    echo "note: chromium is missing, one test needs it: apt-get install chromium"; }
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# What is left out without torch: of `make test`, which says so. The build of torch for CPUs, and
# TorchRec, which asks for packages of GPUs unless it is installed without what it asks for. Where
# pip finds another build, name an index: make TORCH_OPTIONS='--index-url URL' test-torch
TORCH_STAMP := $(VENV)/.set-up-torch
TORCH_OPTIONS ?=
TORCHREC := torchrec fbgemm-gpu-cpu tensordict torchmetrics tqdm pyre-extensions pyvers \
	cloudpickle orjson typing-inspect mypy-extensions typing-extensions
TORCH_TESTS := tests/torch tests/unit/torch tests/unit/rows/test_checkpoint.py \
	tests/unit/codecs/test_codecs.py::test_bytes_and_rows_are_those_of_pytorch \
	tests/unit/serve/test_pooling.py::test_bags_are_those_of_torch \
	tests/unit/serve/test_pooling.py::test_maxima_with_nan_are_those_of_torch \
	tests/docs/test_names.py 'tests/docs/test_examples.py::test_examples_run[torch.md]' \
	'tests/docs/test_examples.py::test_examples_run[graphs.md]'
test-torch: $(TORCH_STAMP)
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TORCH_TESTS)

$(TORCH_STAMP): $(STAMP)
	@echo "installing torch into $(VENV)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt $(TORCH_OPTIONS) \
	  torch torch_geometric
	@$(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' || { \
	  echo "pip has installed a build of torch for GPUs: name an index that has the one for CPUs," \
	       "make TORCH_OPTIONS='--index-url URL' test-torch" >&2; exit 1; }
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps \
	  $(TORCHREC) || echo "note: TorchRec is missing, two tests compare with it"
	@touch $@

# sixteen minutes in all: kills, faults, and what they did to stores under TORTURE_DIR
TORTURE_DIR ?= build/torture
TORTURE_SECONDS ?= 140
KEYED_SECONDS ?= 60
CHANGES_SECONDS ?= 60
CLUSTER_SECONDS ?= 180
torture: $(STAMP)
	@for adapter in blockfile lmdb rocksdb; do \
	  $(PY) -m bandana_kv.testing.torture --dir '$(TORTURE_DIR)' --seconds $(TORTURE_SECONDS) \
	    --adapter $$adapter --json || failed=1; \
	  $(PY) -m bandana_kv.testing.keyed --dir '$(TORTURE_DIR)' --seconds $(KEYED_SECONDS) \
	    --adapter $$adapter --json || failed=1; \
	  $(PY) -m bandana_kv.testing.changes --seconds $(CHANGES_SECONDS) --threads 16 \
	    --adapter $$adapter --json || failed=1; \
	done; \
	$(PY) -m bandana_kv.testing.cluster_faults --seconds $(CLUSTER_SECONDS) --json || failed=1; \
	[ -z "$$failed" ]

# mypy and import-linter cannot see that adapters/ and tools/ live inside bandana_kv: they check
# the built wheel
lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@rm -rf build && mkdir -p build
	@$(PY) -m build --wheel --no-isolation --outdir build/wheel . >build/log 2>&1 || \
	  { cat build/log >&2; exit 1; }
	@$(PY) -m zipfile -e build/wheel/*.whl build/installed
	@cd build/installed && ../../$(PY) -m mypy --config-file ../../pyproject.toml \
	  --cache-dir ../../.mypy_cache -p bandana_kv
	@cd build/installed && ../../$(VENV)/bin/lint-imports --no-cache --no-logo ../../pyproject.toml

# every figure of README.md and docs/benchmarks.md against bench/results/
figures-check: $(STAMP)
	@$(PY) bench/figures_check.py

# docs/ and a reference out of the docstrings, as a site in build/site; a dead link is an error. The
# package is read from a copy that has adapters/ and tools/ inside it, as it is installed, and its
# docstrings name things as Markdown does.
DOCS_STAMP := $(VENV)/.set-up-docs
docs: $(DOCS_STAMP)
	@rm -rf build/api build/site && mkdir -p build/api
	@cp -r bandana_kv build/api/ && cp -r adapters tools build/api/bandana_kv/
	@find build/api -name '*.py' -exec sed -i -E \
	  's/:(func|class|mod|meth|data|attr|exc):`~?([^`]+)`/`\2`/g' {} +
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo "wrote build/site/index.html; to search, too: $(PY) -m http.server -d build/site"

$(DOCS_STAMP): $(STAMP)
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[docs]'
	@touch $@

# the suite on every supported CPython that is on PATH or under pyenv
test-all:
	@failed=; summary=; for version in $(VERSIONS); do \
	  python=; \
	  for found in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version*/bin/python; do \
	    if "$$found" -c 'import ensurepip, venv' 2>/dev/null; then python=$$found; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then summary+="python$$version: not found"$$'\n'; continue; fi; \
	  venv=.venv-$$version; \
	  echo "== python$$version ($$python)"; \
	  if { [ -x $$venv/bin/python ] || "$$python" -m venv $$venv; } && \
	     $(call install,$$venv) && $$venv/bin/python -m pytest -q; \
	  then summary+="python$$version: passed"$$'\n'; \
	  else summary+="python$$version: FAILED"$$'\n'; failed=1; fi; \
	done; printf '\n%s' "$$summary"; [ -z "$$failed" ]

# the bench that needs neither a log nor a device directory named; the others say what they need
bench: $(STAMP)
	@$(PY) bench/placement_scale.py

clean:
	@rm -rf build dist *.egg-info .venv .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
