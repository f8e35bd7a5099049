# make demo   the main job, small: three teachers, one student
# make test   tests, with lint, types and import contracts beside them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false
# Containers that set it compile the whole package anew in every process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-long test-kernels check system faults audit lock proofs docs pages bench bench-gpu mutants install clean

demo: $(VENV)/.demo
	$(BIN)/polydistill demo

# Two processes of one thread each: with two threads each, two cores are twice as slow. By file, so that what a module's tests share is made once; files with slow tests come first (tests/conftest.py).
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
# The tests with `check` beside them, which says after them what it found; a failure of either is one.
beside_check = @$(MAKE) --no-print-directory check > $(VENV)/check.log 2>&1 & check=$$!; \
	$(PYTEST) $(1); tests=$$?; wait $$check; lint=$$?; echo "make check:"; cat $(VENV)/check.log; \
	test $$tests -eq 0 -a $$lint -eq 0

test: $(VENV)/.dev system
	$(call beside_check,-m "not long")

test-fast: $(VENV)/.dev
	$(call beside_check,-m "not slow and not long")

# At most 30 minutes, test by test, since some files would keep one process busy alone; pytest says 5 when there are no
# such tests. With POLYDISTILL_ALL=1 also what only evidence needs: every stranger, not one in six, and 20,000 steps.
test-long: $(VENV)/.dev system
	timeout 1800 $(subst loadfile,worksteal,$(PYTEST)) -m long || test $$? -eq 5

# The fused kernel under Triton's interpreter. Triton beside a CPU's torch would change what trl and transformers do, so
# it has an environment of its own, which sees the packages of the other one.
KERNELS := .venv-kernels
test-kernels: $(KERNELS)/.triton
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(KERNELS)/bin/python -m pytest -q -n 2 tests/kernels

# An environment that sees the packages of the other one.
define beside
	$(BIN)/python -m venv $(1)
	purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$purelib")')" \
		> "$$($(1)/bin/python -c "$$purelib")/other.pth"
endef

$(KERNELS)/.triton: $(VENV)/.dev
	$(call beside,$(KERNELS))
	$(KERNELS)/bin/python -m pip install --quiet --no-deps triton==3.9.0
	touch $@

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A browser and a compiler, where they are missing and can be installed.
system:
	sh tests/system.sh browser compiler

# The Coq development; proofs/README.md says what it proves.
proofs:
	sh tests/system.sh coq
	sh proofs/check.sh

# Faults of every class, by name, with what was injected, survived and lost.
faults: $(VENV)/.dev
	timeout 1800 $(BIN)/python -m pytest -q -s -m long tests/faults

# Known holes in the tested versions; needs the network, and pip-audit, which is no part of the tests.
audit: constraints.txt
	pip-audit --no-deps --disable-pip --requirement constraints.txt

# The tested versions with the hashes of their files, without torch, whose CPU build has others.
lock: pyproject.toml constraints.txt
	pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate --constraint constraints.txt \
		--unsafe-package torch --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml

# In an environment of its own, which sees the packages of the other one and changes none of them.
DOCS := .venv-docs
docs: $(DOCS)/.sphinx
	$(DOCS)/bin/python -m sphinx -q -W -b html docs docs/_build/html
	$(DOCS)/bin/python docs/links.py docs/_build/html
	@echo docs/_build/html/index.html

# Pages that are made from a run of the code.
pages: $(VENV)/.dev
	$(BIN)/python -m polydistill.theory proofs/index.json > docs/_theory.md && mv docs/_theory.md docs/theory.md
	$(BIN)/python -m polydistill.config.reference > docs/_configuration.md && mv docs/_configuration.md docs/configuration.md
	$(BIN)/python proofs/document.py > docs/_proofs.md && mv docs/_proofs.md docs/proofs.md

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/objective.py

# Objective, floor and rivals on a GPU, in one file under benchmarks/results. PYTHON= for a machine that brings its own
# torch; what it lacks is named and left out. BENCH="--device cpu" tries it without a card.
bench-gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(if $(NAME),--name $(NAME)) $(BENCH)

# Small changes to the code that tests must notice; by hand, takes minutes.
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants.py

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

$(DOCS)/.sphinx: $(VENV)/.demo
	$(call beside,$(DOCS))
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt \
		$$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

clean:
	rm -rf $(VENV) $(KERNELS) $(DOCS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
