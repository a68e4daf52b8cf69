# `make demo` and `make test` do everything: set up .venv where something changed, then their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(wildcard native/*)

.PHONY: demo test slow newcomer lint format docs install clean

# Tests run beside other work: OpenMP threads that wait for a core they share must sleep, not spin.
test slow newcomer: export OMP_WAIT_POLICY := passive

demo: install
	$(BIN)/luq-gguf demo

test: install
	$(BIN)/python -m pytest

# Long tests, and those that need the source archive of llama-cpp-python.
slow: install
	$(BIN)/python -m pytest -m slow

# The README's commands from top to bottom, with the demo model in the place of the hub's.
newcomer: install
	$(BIN)/python scripts/newcomer.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/write_commands.py --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/write_commands.py

# The site in site/; a link that leads nowhere is an error.
docs: $(VENV)/docs-installed
	$(BIN)/mkdocs build --strict

install: $(VENV)/installed

$(VENV)/python-ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "luq_gguf needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo "$(PYTHON) cannot make a virtual environment; install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@

# torch first, at its fixed version; llama-cpp-python compiles llama.cpp, which takes minutes once.
$(VENV)/dependencies-ready: constraints.txt pyproject.toml | $(VENV)/python-ready
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt llama-cpp-python scikit-build-core
	touch $@

$(VENV)/installed: $(VENV)/dependencies-ready $(NATIVE)
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
