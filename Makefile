# make demo   the main job, small: three teachers, one student
# make test   lint, types, import contract, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-fast test-long check proofs docs pages bench install clean

demo: $(VENV)/.demo
	$(BIN)/polydistill demo

# By file, so that what a module's tests share is made once; files with slow tests come first (tests/conftest.py).
test: check
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# Searches and runs that are long by nature; after `make test`, before a release.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m long

test-fast: check
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not long"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The Coq development; proofs/README.md says what it proves.
proofs:
	sh proofs/check.sh

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# Pages that are made from a run of the code.
pages: $(VENV)/.dev
	$(BIN)/python -m polydistill.theory proofs/index.json > docs/_theory.md && mv docs/_theory.md docs/theory.md
	$(BIN)/python proofs/document.py > docs/_proofs.md && mv docs/_proofs.md docs/proofs.md

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/objective.py

install: $(VENV)/.dev

# torch comes first and alone, at its pinned version, so that no other package's range picks another build.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
