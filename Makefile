# Everything runs in .venv, which is made with $(PYTHON) and brought up to date whenever pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
# Most of the tests' time is XLA compiling, on one thread. On many cores: make test PYTEST_ARGS="-n 8 --dist worksteal".
PYTEST_ARGS ?= -n 2 --dist worksteal

.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast bench clean

help:
	@echo "make demo     train all traces on scikit-learn's digits at several delays: a table and a figure (3 min)"
	@echo "make test     lint, format check and tests"
	@echo "make test-fast  those tests that are quick: no end-to-end runs, no training (2 min on two cores)"
	@echo "make bench    cost against plain backprop and against the literal rule"
	@echo "make install  only make .venv and install cetsim into it"
	@echo "make clean    remove .venv and caches; results/ is kept"
	@echo "PYTHON=python3.11 chooses the interpreter, 3.11 or newer (now: $(PYTHON))"

install: .venv/installed

demo: .venv/installed
	$(BIN)/python -m experiments behavioral-vision --preset demo --out results

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: .venv/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

bench: .venv/installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted installation is taken up again.
.venv/installed: pyproject.toml | .venv/bin/pip
	@echo "installing cetsim and what it needs into .venv (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[simulators]' || \
		echo "the simulators could not be installed: tests that compare environments with them are skipped" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster]' || \
		echo "submitit could not be installed: its example is not tested" >&2
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "cetsim needs Python 3.11 or newer, got $(PYTHON): $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
