# Every target does its own set-up in .venv; all it needs is Python >= 3.11 (PYTHON=python3.12 chooses one) and make.
# pip obeys its own configuration and environment variables, for instance for an index with CPU builds of torch.

PYTHON ?= python3
WORKERS ?= 2
SELECT ?= slow
BENCH ?= exact
BENCH_FLAGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

extras_demo := plot,data
extras_test := test
extras_lint := test,lint
extras_docs := docs
extras_bench := bench

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow lint format docs notebooks notebooks-check bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /: /'

demo: .venv/.stamp-demo  ## fit the Mauna Loa CO2 series; writes demo/
	$(BIN)/gpx fit co2 --output demo

# One thread per worker: more only compete for the cores.
test test-slow notebooks-check: export OMP_NUM_THREADS := 1
test: .venv/.stamp-test  ## all tests but the slow ones, with coverage
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov --cov-report=term --cov-fail-under=85

test-slow: .venv/.stamp-test  ## the slow tests (SELECT="slow and ci": those of continuous integration)
	$(BIN)/python -m pytest -n $(WORKERS) -m "$(SELECT)" --durations=10

lint: .venv/.stamp-lint  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.stamp-lint  ## apply what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.stamp-docs  ## HTML pages in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html

notebooks: .venv/.stamp-docs  ## run the notebooks anew and keep their outputs
	$(BIN)/python docs/execute.py --write notebooks/*.ipynb

notebooks-check: export GPX_SMOKE := 1
notebooks-check: .venv/.stamp-docs  ## run the notebooks at reduced size, writing nothing
	printf '%s\n' notebooks/*.ipynb | xargs -P $(WORKERS) -n 1 $(BIN)/python docs/execute.py

bench: .venv/.stamp-bench  ## one benchmark (BENCH=exact BENCH_FLAGS=--quick)
	$(BIN)/python -m benchmarks $(BENCH) $(BENCH_FLAGS)

clean:  ## remove what the targets made, .venv included
	rm -rf .venv build dist demo docs/_build benchmarks/results .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find gpx tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that the extras of one purpose are installed as pyproject.toml and constraints.txt have them.
.venv/.stamp-venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("gpx needs Python >= 3.11, this is %d.%d; try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.stamp-%: .venv/.stamp-venv pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[$(extras_$*)]'
	@touch $@

.PRECIOUS: .venv/.stamp-%
