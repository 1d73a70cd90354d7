# Both need Python 3.10 or newer and a package index, nothing else.
PYTHON ?= python3
# Before anything that depends on it, so that no dependency chooses another build.
TORCH ?= torch==2.13.0
BIN := .venv/bin
ALL := train,census,dask,adapt,eval,scib,search,app,docs,dev
# The ends of what is supported, each with a Python that has it: the lowest set is of 3.10 and 3.11.
PYTHON_lowest ?= $(PYTHON)
PYTHON_newest ?= $(PYTHON)
# Another torch than theirs, as in TORCH_lowest=torch==2.13.0; some of the tests.
TORCH_lowest ?=
TORCH_newest ?=
TESTS ?=

.PHONY: demo test test-matrix test-lowest test-newest clean

demo: .venv/demo-installed  ## annotate 700 real blood cells with the shipped checkpoint
	$(BIN)/langcell annotate --example --out demo/pbmc68k_annotated.h5ad \
		--figure demo/figure.png --report demo/report.html

test: .venv/test-installed  ## lint, types, and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy eval/*.py eval/tasks/*.py
	$(BIN)/mypy space/*.py
	$(BIN)/pytest -rs

test-matrix: test-lowest test-newest  ## the test suite on the lowest and on the newest supported versions

# What is tested of the release makes environments of its own.
test-lowest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/pytest -rs --ignore tests/test_release.py $(TESTS)

.venv/demo-installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test-installed: .venv/demo-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$(ALL)]"
	touch $@

.venv-lowest/installed .venv-newest/installed: .venv-%/installed: pyproject.toml constraints/%.txt
	$(PYTHON_$*) -m venv --clear .venv-$*
	sed 's/^torch==.*/$(or $(TORCH_$*),&)/' constraints/$*.txt > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --constraint .venv-$*/constraints.txt \
		--editable ".[$(ALL)]"
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest demo
