# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-all check format clean setup

# Reinstalled when pyproject.toml changes.
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"bqjax needs Python 3.11 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[test]"
	@touch $@

demo: setup
	$(BIN)/bqjax compare --config configs/digits.py --out out/demo --force \
		--method "B&Q, entropy-constrained" "B&Q, 16 bins" "Gaussian bins, *" "k-means, 8" "k-means, 16"
	$(BIN)/python -m train --config configs/digits_gwk.py --out out/demo/gwk

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What `make test` leaves out: what takes long, and other tests cover in part.
test-slow: setup
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Both, with more examples of each property, on programs compiled as users have them (tests/conftest.py).
test-all: setup
	HYPOTHESIS_PROFILE=thorough JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 --dist worksteal -m ""

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache
