# Both need Python 3.10 or newer and a package index, nothing else.
PYTHON ?= python3
# Before anything that depends on it, so that no dependency chooses another build.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/demo-installed  ## annotate 700 real blood cells with the shipped checkpoint
	$(BIN)/langcell annotate --example --out demo/pbmc68k_annotated.h5ad \
		--figure demo/figure.png --report demo/report.html

test: .venv/test-installed  ## lint, types, and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy eval/*.py eval/tasks/*.py
	$(BIN)/pytest -rs

.venv/demo-installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test-installed: .venv/demo-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[train,census,dask,adapt,eval,scib,docs,dev]"
	touch $@

clean:
	rm -rf .venv demo
