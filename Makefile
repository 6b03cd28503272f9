# Everything runs in .venv, which is made when it is missing. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Threads that wait go to sleep after some microseconds: on a busy machine spinning costs a factor of ten.
export GOMP_SPINCOUNT ?= 10000
# Memory of tensors goes back to the pool and not to the system, which would have to hand it out page by page again: with
# images a twelfth of a solve's time. (glibc's own names; other systems do not read them.)
export MALLOC_MMAP_THRESHOLD_ ?= 268435456
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.PHONY: help compare test test-all check bench format clean

help:
	@echo "make compare   train and compare discrete and continuous depth on the embedded digits; ARGS='seed=1' adds overrides"
	@echo "make test      the tests (without those marked slow); make test-all runs every one"
	@echo "make check     ruff, pyright and the quick tests"
	@echo "make bench     timings beside torchdiffeq, torchode and diffrax, and the other benchmarks; writes docs/speed.md"
	@echo "make format    let ruff rewrite the code"
	@echo "make clean     remove .venv and caches; runs/ stays"

compare: $(VENV)/.installed
	$(BIN)/odenet compare $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS)

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m "not slow" -n 2 tests/residual tests/test_blocks.py tests/test_solve.py tests/solvers/test_tableaus.py

BENCHMARKS := $(filter-out benchmarks/__init__.py benchmarks/workloads.py benchmarks/peers.py benchmarks/stages.py benchmarks/layers.py benchmarks/gradients_jax.py benchmarks/speed.py benchmarks/speed_gpu.py,$(wildcard benchmarks/*.py))
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.speed --threads 2 --docs $(ARGS)
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "odenet needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,bench]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
