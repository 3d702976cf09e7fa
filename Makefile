# Everything runs in .venv, which is made if it is missing or older than pyproject.toml.
# To use another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
DOCS := $(VENV)/.docs
# One worker per core; a worker that has finished takes tests from the others.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help demo test test-quick lint bench docs dist clean

help:
	@echo "make demo        make pictures of the embedded network's ten classes, in outputs/"
	@echo "make test        run lint and all tests, the slow tests last"
	@echo "make test-quick  run all tests except the slow tests"
	@echo "make lint        run ruff, mypy and import-linter"
	@echo "make bench       measure speed and memory in five minutes, beside the published loop, Horama and Lucent"
	@echo "make docs        build the documentation: site/index.html; warnings and dead links are errors"
	@echo "make dist        build the packages to publish, in dist/, check them, and try them in an empty folder"
	@echo "make clean       remove the environment and the files that tools leave; outputs/ stays"

demo: $(STAMP)
	$(BIN)/vital-visualize

test: lint
	$(PYTEST)

test-quick: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vital_exp
	$(BIN)/lint-imports --no-logo --no-cache

bench: $(PEERS)
	$(BIN)/python benchmarks/speed.py

docs: $(DOCS)
	$(BIN)/python -m tools.documentation build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file build/mkdocs.yml
	$(BIN)/python -m tools.documentation.built site

# Builds the packages, checks their metadata, installs the wheel into a new environment, and makes pictures in an empty folder.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	VITAL_WHEEL="$$(ls dist/*.whl)" $(BIN)/python -m pytest tests/test_package.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing vital_exp with PyTorch into $(VENV): several minutes and several GB the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# Horama and Lucent, with which make bench compares.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[peers]"
	@touch $@

# The packages that build the site.
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@
