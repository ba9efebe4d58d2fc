# `make` alone lists what there is. Needs GNU make, a POSIX shell and Python >= 3.11 with venv; nothing else.
#
# Variables: PYTHON  the interpreter to make the environment from (default: the newest found)
#            VENV    where the environment lives (default: .venv)
#            JOBS    test processes (default: 2)
#            TORCH_INDEX  an extra package index for PyTorch (default: the CPU wheels if there is no NVIDIA driver)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test coverage lint format types docs bench pins clean distclean

VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-11s %s\n", $$1, $$2 }'

quickstart: $(VENV)/.ready-all ## environment, then train, sample and infill on bundled text (minutes, no GPU)
	$(BIN)/python -m unmask.recipes.quickstart

test: $(VENV)/.ready-dev ## the tests that CI runs
	$(BIN)/python -m pytest -n $(JOBS)

coverage: $(VENV)/.ready-dev ## the same tests, half as long again, and the lines of src/ that none of them runs
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term:skip-covered

lint: $(VENV)/.ready-dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready-dev ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready-dev ## mypy on src/
	$(BIN)/mypy

docs: $(VENV)/.ready-dev ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: $(VENV)/.ready-dev ## speed and memory beside peers, into docs/performance.md
	$(BIN)/python -m bench

pins: $(VENV)/.ready-dev ## rewrite constraints.txt from the environment
	@head -n 2 constraints.txt > constraints.txt.new
	@$(PIP) freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | grep -v ' @ ' >> constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean: ## remove caches and the built site (keeps runs/ and the environment)
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find src tests tools bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment
	rm -rf $(VENV)

# pip is the last thing that venv writes, so an interrupted creation starts again.
$(BIN)/pip:
	@python=$$(sh tools/find_python.sh $(PYTHON)) && \
	echo "Making the environment $(VENV) with $$python ($$($$python -V 2>&1))" && \
	$$python -m venv $(VENV)

# PyTorch goes in first and alone: no other package may then choose a build of it. A stamp is written last, and is
# out of date as soon as pyproject.toml or constraints.txt changes.
$(VENV)/.ready-all: $(INPUTS) | $(BIN)/pip
	@index="$(TORCH_INDEX)"; test -n "$$index" || index=$$($(BIN)/python tools/torch_index.py); \
	echo "Installing $(TORCH) $${index:+from $$index}"; \
	$(PIP) install $${index:+--extra-index-url $$index} -c constraints.txt "$(TORCH)"
	@echo "Installing unmask and what it needs (a minute or two)"
	@$(PIP) install --quiet -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.ready-dev: $(INPUTS) | $(VENV)/.ready-all
	@echo "Installing the tools of development (a minute)"
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.ready-all
