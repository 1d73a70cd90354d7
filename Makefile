# Both need Python 3.10 or newer and a package index, nothing else.
PYTHON ?= python3
# Before anything that depends on it, so that no dependency chooses another build.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# What the tests need, and what only checks or documents the code.
TESTED := train,census,dask,adapt,eval,scib,onnx,search,clusters,app,test
ALL := $(TESTED),docs,dev
# Two processes, each on one thread; one that has finished its tests takes tests of the other.
PYTEST := pytest -rs --durations=10 -n 2 --dist worksteal
# Python for the lowest and the newest supported versions; the lowest need 3.10 or 3.11.
PYTHON_lowest ?= $(PYTHON)
PYTHON_newest ?= $(PYTHON)
# Another torch than theirs, as in TORCH_lowest=torch==2.13.0; other tests than the quick ones, as in TESTS=tests/cli.
TORCH_lowest ?=
TORCH_newest ?=
TESTS ?= -m "not e2e"
# Others of the end-to-end tests, as in E2E='-m "e2e and not heavy"'.
E2E ?= -m e2e

.PHONY: demo test test-e2e test-all test-nightly test-matrix test-lowest test-newest clean

demo: .venv/demo-installed  ## annotate 700 real blood cells with the shipped checkpoint
	@echo "Annotating 700 blood cells that come with scanpy: half a minute."
	$(BIN)/langcell annotate --example --out demo/pbmc68k_annotated.h5ad \
		--figure demo/figure.png --report demo/report.html

test: .venv/test-installed  ## lint, types, the order of imports, and the quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy eval/*.py eval/tasks/*.py eval/benchmarks/*.py eval/experiments/*.py
	$(BIN)/mypy space/*.py
	$(BIN)/$(PYTEST) -m "not e2e"

test-e2e: .venv/test-installed  ## the guide, the wheel, browsers, kills, several processes, a Hub over HTTP
	$(BIN)/$(PYTEST) $(E2E)

test-all: test test-e2e  ## every test

test-nightly: .venv/test-installed  ## the property tests with many random inputs
	LANGCELL_HYPOTHESIS=nightly $(BIN)/$(PYTEST) -m hypothesis

test-matrix: test-lowest test-newest  ## the quick tests on the lowest and on the newest supported versions

test-lowest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/$(PYTEST) $(TESTS)

.venv/demo-installed: pyproject.toml
	@echo "Installing $(TORCH), transformers, scanpy and LangCell into .venv: 2 GB and about 3 minutes with PyTorch's" \
		"build for CPUs, several GB more with its builds for GPUs."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@echo "Installed: $$(du -sh .venv | cut -f 1)."
	touch $@

.venv/test-installed: .venv/demo-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$(ALL)]"
	touch $@

.venv-lowest/installed .venv-newest/installed: .venv-%/installed: pyproject.toml constraints/%.txt
	$(PYTHON_$*) -m venv --clear .venv-$*
	sed 's/^torch==.*/$(or $(TORCH_$*),&)/' constraints/$*.txt > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --constraint .venv-$*/constraints.txt \
		--editable ".[$(TESTED)]"
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest demo
