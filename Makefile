# Everything runs in .venv, which is made when it is missing or pyproject.toml is newer.
# Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
DOCS := $(VENV)/.docs
# One worker for each core; a worker that is done takes tests from another.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help demo test test-quick lint bench docs dist clean

help:
	@echo "make demo        pictures of the embedded network's ten classes, into outputs/"
	@echo "make test        lint, types and all tests, the slow ones last"
	@echo "make test-quick  all tests but the slow ones"
	@echo "make lint        ruff, mypy, and the layers of imports"
	@echo "make bench       one page of speed in five minutes: against the published loop, Horama, Lucent; scaling; memory"
	@echo "make docs        the documentation as a site, into site/: open site/index.html; warnings and dead links are errors"
	@echo "make dist        the packages to publish, into dist/, checked and tried in an empty folder"
	@echo "make clean       remove the environment and what tools leave behind; outputs/ stays"

demo: $(STAMP)
	$(BIN)/vital-visualize

test: lint
	$(PYTEST) -m "not slow"
	$(PYTEST) -m slow

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

# Builds, checks the metadata, installs the wheel into a new environment, makes pictures in an empty folder.
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

# Horama and Lucent, which the page of speed compares with.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[peers]"
	@touch $@

# What builds the site.
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@
