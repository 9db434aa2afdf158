# make setup | demo | test | test-all | check (lint types imports) | docs
# make bench (on an idle machine) | bench-PART (bench-steps, bench-llama_cpp, bench-large ...) | bench-pages
#
# PYTHON     the interpreter that .venv is made with (3.11 or newer)
# PIP_ARGS   passed on to pip, for example an extra index with smaller torch wheels

PYTHON ?= python3
PIP_ARGS ?=
export PIP_ARGS
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-complete
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test test-all check lint types imports docs bench bench-pages

setup: $(STAMP)

# The stamp is removed first and written last, so a set-up that fails or is interrupted runs again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "tokenscale needs Python 3.11 or newer, and there is no '$(PYTHON)' here."; \
	  echo "  fix: install it, or name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tokenscale needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "  fix: name a newer one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' comes without the venv module, which makes the environment."; \
	  echo "  fix: install it (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[test,dev,docs]'
	@touch $@

demo: setup
	@$(BIN)/tokenscale demo

test: setup
	$(PYTEST) -n 2 -m "not slow"

test-all: setup
	$(PYTEST) -n 2
	@bash tests/other_interpreters.sh $(BIN)/python

check: lint types imports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(PYTEST) tests/test_import_rule.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m benchmarks.run all
	$(BIN)/python -m benchmarks.pages

bench-pages: setup
	$(BIN)/python -m benchmarks.pages

$(addprefix bench-,llama_cpp kernels beams constraint_masks): bench-%: setup
	$(BIN)/python -m benchmarks.$* --out benchmarks/results/$*.json

bench-%: setup
	$(BIN)/python -m benchmarks.run $* --out benchmarks/results/$*.json
