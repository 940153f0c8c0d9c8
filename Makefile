# `make demo` and `make test` do everything on a fresh machine: both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-slow test-all fuzz check docs format clean setup

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
	$(PYTEST)

# What `make test` leaves out: processes, whole networks, real data, the wheel, the site.
test-slow: setup $(VENV)/.docs
	$(PYTEST) -m slow

# Both, with more examples of each property, on programs compiled as users have them (tests/conftest.py).
test-all: setup $(VENV)/.docs
	HYPOTHESIS_PROFILE=thorough JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m ""

# Damaged files of every kind: each a ValueError or the content that was there, within 1 s and 200 MB. Goes on where it was
# interrupted; a million take about half an hour of one core.
SEED := 0
COUNT := 1000000
fuzz: setup
	PYTHONPATH=tests:tests/tflite $(BIN)/python -m fuzz --seed $(SEED) --count $(COUNT)

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
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache
