# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   ?= .venv
OUT    ?= runs/demo
TARGET ?= cartoon
GOLDEN ?= tests/golden
PYTEST ?= -n 2 --dist loadfile

BIN   := $(VENV)/bin
STAMP := $(VENV)/.zeroshift-setup

.PHONY: setup demo test test-fast lint bench golden docs
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/zeroshift adapt --target "$(TARGET)" --out "$(OUT)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# One thread a process keeps the numbers the same on every machine.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -q --durations=15 $(PYTEST)

# For working, in under a minute: without pyright, and without the tests that tests/slow.txt lists.
test-fast: export OMP_NUM_THREADS = 1
test-fast: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -m "not slow" $(PYTEST)

golden: export OMP_NUM_THREADS = 1
golden: setup
	ZEROSHIFT_GOLDEN="$(GOLDEN)" $(BIN)/python -m pytest -q -rs -m golden $(PYTEST)

bench: setup
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# Pages that are generated from the options: docs/verbs/ and tables of the README.
docs: setup
	$(BIN)/python docs/generate.py
