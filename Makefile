# The verbs of this project. `make demo` and `make test` need Python 3.11 or later and nothing else.

PYTHON ?= python3
BIN := .venv/bin
# Two threads of arithmetic in each of two test processes would fight for two cores.
TEST_ENV := OMP_NUM_THREADS=1
PIP := bin/pip install --quiet --disable-pip-version-check
SELF_SUFFICIENT := $(addprefix benchmarks/,crowd.py disk.py never_worse.py recovery.py scaling.py speed.py streaming.py)

.DEFAULT_GOAL := help
.PHONY: help install demo test docs bench

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: .venv/.installed ## Create .venv and install retell into it, with the versions of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retell needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## Fit an autoencoder to images of digits; a model and two pictures go to demo/
	@$(BIN)/retell demo

test: install ## Style, types, storeys, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/pytest -n 2

docs: install ## Run every page of docs/source; docs/ gets what they say, print and draw
	$(TEST_ENV) $(BIN)/python docs/build.py

bench: install .bench/peers/.installed .bench/sparse/.installed ## Every benchmark; DATA=DIR for those that need the folder of the data
	@failed=; for one in $(if $(DATA),$(wildcard benchmarks/*.py),$(SELF_SUFFICIENT)); do \
		echo "== $$one"; $(BIN)/python $$one $(if $(DATA),--data "$(DATA)") || failed="$$failed $$one"; \
	done; test -z "$$failed" || { echo "missed what they want:$$failed"; exit 1; }

# A peer that does not install must not keep the others from being measured: it says so in the table.
.bench/%/.installed: benchmarks/peers/requirements-%.txt benchmarks/peers/requirements-%-no-deps.txt
	$(PYTHON) -m venv .bench/$*
	.bench/$*/$(PIP) -r $< || for one in $$(grep -v '^#' $<); do .bench/$*/$(PIP) -c $< $$one || echo "left out: $$one"; done
	for one in $$(grep -v '^#' $(word 2,$^)); do \
		.bench/$*/$(PIP) --no-deps --ignore-requires-python $$one || echo "left out: $$one"; done
	@touch $@
