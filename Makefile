# One verb per job. Each verb sets up what it needs by itself, so a fresh clone needs only
# Python 3.11 or newer and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# What `make bench` runs beside this project, for example: make bench PEERS="ray litserve"
PEERS  ?=
# Extra words for pytest, for example: make test ARGS="tests/unit -x"
ARGS   ?=

.PHONY: help setup setup-light run test check format bench docs clean

help:
	@echo "make run     serve examples/quickstart and ask it one question"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, layers"
	@echo "make format  let ruff rewrite what it can"
	@echo "make bench   the benchmarks; PEERS=\"ray litserve\" runs others beside"
	@echo "make docs    run every code block and example of the docs, check every link"
	@echo "make clean   remove environments, builds and caches"

# The stamps are older than the files they depend on only when something changed.
LIGHT := $(VENV)/.stamp-light
QUICK := $(VENV)/.stamp-quickstart
DEV   := $(VENV)/.stamp-dev

setup: $(DEV)
setup-light: $(LIGHT)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Remora needs Python 3.11 or newer, and $(PYTHON) is older. Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(LIGHT): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Remora into $(VENV)"
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(QUICK): $(LIGHT)
	@echo "Installing what the quickstart serves (scikit-learn) into $(VENV)"
	@$(PIP) install -q -c constraints.txt -e '.[quickstart]'
	@touch $@

$(DEV): $(LIGHT)
	@echo "Installing what tests, checks and examples need into $(VENV) (once, some minutes)"
	@$(PIP) install -q -c constraints.txt -e '.[dev,examples]'
	@touch $@

run: $(QUICK)
	@$(BIN)/python scripts/quickstart.py

test: $(DEV)
	$(BIN)/python -m pytest $(ARGS)

# Folders that exist; a clone always has all of them.
PY_DIRS := $(wildcard src tests examples benchmarks scripts)
# Examples are folders of scripts, with equal names in each: one mypy run each, from inside.
EXAMPLES := $(sort $(wildcard examples/*/))
MYPY     := $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

check: $(DEV)
	$(BIN)/ruff format --check $(PY_DIRS)
	$(BIN)/ruff check $(PY_DIRS)
	$(MYPY) src tests scripts $(wildcard benchmarks)
	@for folder in $(EXAMPLES); do echo "mypy $$folder"; (cd $$folder && $(MYPY) .) || exit 1; done
	$(BIN)/lint-imports

format: $(LIGHT) $(DEV)
	$(BIN)/ruff check --fix $(PY_DIRS)
	$(BIN)/ruff format $(PY_DIRS)

bench: $(DEV)
	$(BIN)/python -m benchmarks $(if $(strip $(PEERS)),--peers $(PEERS)) $(ARGS)

docs: $(DEV)
	$(BIN)/python -m pytest tests/docs $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
