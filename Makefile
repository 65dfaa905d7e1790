# Every target works alone and first on a fresh machine: it makes .venv, installs the project into it, then runs.
# PYTHON picks the interpreter that makes .venv; ARGS reaches the program behind quickstart, zoo, bench and test; WORKERS
# is how many processes run the tests, each on one thread and in up to 2 GB.
PYTHON ?= python3
ARGS ?=
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint zoo bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install the project with its development tools
	@echo "==> $(VENV) is ready"

$(STAMP): pyproject.toml
	@echo "==> $(VENV): installing hypercompress and its tools (the first time takes minutes: torch is large)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "error: received Python %d.%d; expected 3.11 or newer; run make PYTHON=python3.11 (or newer)" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## compress a small trained model and print what came out
	@echo "==> quickstart"
	@$(BIN)/python -m benchmarks.quickstart $(ARGS)

test: $(STAMP)  ## the tests, without those marked slow
	@echo "==> tests (without slow)"
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(STAMP)  ## all tests
	@echo "==> tests (all)"
	@$(PYTEST) $(ARGS)

lint: $(STAMP)  ## style, format, types, import layers, dependencies
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import layers"
	@$(BIN)/lint-imports --no-cache
	@echo "==> deptry"
	@$(BIN)/deptry .

zoo: $(STAMP)  ## train the teachers that meta-training and the benchmarks use
	@echo "==> zoo"
	@$(BIN)/python -m lightning_modules.zoo $(ARGS)

bench: $(STAMP)  ## make the ResNet-18 numbers of the README again (ARGS="--data fashion_mnist:DATA")
	@echo "==> benchmarks"
	@$(BIN)/python -m benchmarks.resnet18 $(ARGS)

clean:  ## remove .venv, build outputs and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
