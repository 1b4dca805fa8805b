# make demo | make test | make check | make docs | make clean
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two tests at a time; the tests of one file stay together.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
RUN := HF_HUB_OFFLINE=1 FLWR_TELEMETRY_ENABLED=0 OMP_NUM_THREADS=1

.PHONY: demo test check docs clean

demo: .venv/.run
	$(RUN) $(BIN)/homerank-simulate run --data world

test: .venv/.dev
	$(RUN) $(PYTEST)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(RUN) $(PYTEST) -m "not slow" -q

docs: .venv/.dev
	$(BIN)/python -m shared.config_docs > docs/configuration.md
	$(BIN)/python -m simulations.cli_docs > docs/cli.md

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("homerank needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[simulation]"
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev]"
	touch $@ .venv/.run

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
