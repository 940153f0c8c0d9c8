# `make demo` and `make test` do everything on a fresh machine: both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-slow check docs format clean setup

# Reinstalled when pyproject.toml changes.
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"bqjax needs Python 3.11 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[test]"
	@touch $@

demo: setup
	$(BIN)/bqjax compress --config configs/digits_bq.py --out out/demo/model.bq.safetensors --report out/demo/report.html --force
	$(BIN)/python -m train --config configs/digits_gwk.py --out out/demo/gwk

test: setup
	$(PYTEST)

# What is slow and covered in no other way, compiled as users have it (tests/conftest.py): processes, commands, the wheel, the site.
test-slow: setup $(VENV)/.docs
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in out/site. Its packages are installed when it is built for the first time; later builds need no network.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "out/site/index.html; with search: $(BIN)/python -m http.server --directory out/site"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
