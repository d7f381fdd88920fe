# Everything runs in .venv. It is made with $(PYTHON) and $(JAX), remade whenever they differ from what it was made with,
# and brought up to date whenever pyproject.toml changes.
PYTHON ?= python3
JAX ?= jax
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Most of the tests' time is XLA compiling, on one thread. On many cores: make test PYTEST_ARGS="-n 8 --dist worksteal".
PYTEST_ARGS ?= -n 2 --dist worksteal
CHOSEN := -m "not slow"

.DELETE_ON_ERROR:
.PHONY: help install demo test test-all bench docs clean FORCE

help:
	@echo "make demo     train all traces on scikit-learn's digits at several delays: a table and a figure (3 min)"
	@echo "make test     lint, format check and the tests that tests/slow.txt does not name (a quarter of an hour on two cores)"
	@echo "make test-all those tests too (40 minutes)"
	@echo "make bench    cost against plain backprop and against the literal rule"
	@echo "make docs     the site, into site/: start at site/index.html"
	@echo "make install  only make .venv and install cetsim into it, with what the experiments take"
	@echo "make clean    remove .venv and caches; results/ is kept"
	@echo "PYTHON=python3.13 chooses the interpreter, 3.11 or newer (now: $(PYTHON)); JAX='jax==0.11.*' what pip is asked for"

install: .venv/installed

demo: .venv/installed
	$(BIN)/python -m experiments behavioral-vision --preset demo --out results

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(CHOSEN) $(PYTEST_ARGS)
	$(if $(CHOSEN),@echo "left out: $$(grep -c :: tests/slow.txt) slow tests; make test-all runs them")

test-all: CHOSEN :=
test-all: test

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

# Strict: a broken link, or a public name that no API page describes, ends it.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted installation is taken up again.
.venv/installed: pyproject.toml .venv/made-with
	@echo "installing cetsim and what its experiments take into .venv (a few minutes the first time)"
	$(PIP) --editable '.[experiments]' '$(JAX)'
	@touch $@

# gymnax without its dependencies, since it asks for a jax below 0.12, with which it works; those it has are in [test].
.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]' '$(JAX)'
	$(PIP) --no-deps 'gymnax>=1.0.1'
	$(BIN)/python -c 'import Box2D, gymnax, minatar, submitit, tensorboardX'
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]' '$(JAX)'
	@touch $@

# Always looked at, and written only where something differs, so that what depends on it is not made again.
.venv/made-with: FORCE
	@wanted=$$($(PYTHON) -c 'import platform, sys; print(sys.base_prefix, platform.python_version()); \
		sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || { \
		echo "cetsim needs Python 3.11 or newer, got $(PYTHON): $$($(PYTHON) --version 2>&1)" >&2; \
		echo "Name another one, or its path, with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
	if [ "$$wanted $(JAX)" != "$$(cat $@ 2>/dev/null)" ]; then \
		echo "making .venv with $$wanted"; \
		$(PYTHON) -m venv --clear .venv && echo "$$wanted $(JAX)" > $@; \
	fi
