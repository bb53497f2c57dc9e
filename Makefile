# The same targets serve people and CI. Everything needed is installed by the targets themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FUZZ   ?= 60
STAMP  := $(VENV)/.installed
NPM    := interop/node_modules/.package-lock.json
# Empty without a node that can run the TypeScript parts.
NODE   := $(shell node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' 2>/dev/null && echo node)

.PHONY: help venv npm check style types fast test test-runtimes demo interop chaos large-file bench bench-quick fuzz vectors coverage clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## the virtual environment with everything for development

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the Python packages into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

npm: $(NPM) ## the npm packages of the TypeScript peer

$(NPM): interop/package.json interop/package-lock.json
	@echo "installing the npm packages into interop/node_modules"
	@cd interop && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

demo: venv $(if $(NODE),npm) ## agents in Python and TypeScript talk through a relay that sees ciphertext only
	@$(BIN)/python -m demo

test: venv $(if $(NODE),npm) ## everything: style, types, vectors, and all tests, with real processes in three runtimes
	@failed=0; $(MAKE) --no-print-directory style types vectors || failed=1; \
	test $$failed = 0 || echo "make test: style, types or vectors failed, see above; the tests run all the same" >&2; \
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not runtimes' tests || failed=1; exit $$failed

test-runtimes: venv $(if $(NODE),npm) ## tools and responders in the real runtimes; installs them below .cache/runtimes the first time
	@$(BIN)/pytest -q -m runtimes tests

check: style types fast ## style, types and the fast tests: run before every commit

style: venv
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .

types: venv
	@$(BIN)/mypy

fast: venv
	@$(BIN)/pytest -q -x -n 2 -m 'not slow and not node' tests

interop: venv npm ## who talks to whom: every client on every relay and registry, as a table
	@$(BIN)/python -m interop.matrix

chaos: venv ## kill -9 everything while messages flow, 20 rounds of 5,000; more with CHAOS='--rounds 100 --seed 7'
	@$(BIN)/python -m tests.faults.chaos $(CHAOS)

large-file: venv ## 1 GiB from process to process through a relay, and what it costs in memory
	@$(BIN)/python -m tests.faults.large_file

bench: venv $(if $(NODE),npm) ## measure everything beside its peers and write docs/benchmarks.md: 25 minutes; less with BENCH='--only relay'
	@$(BIN)/python -m bench --json docs/benchmarks.json $(BENCH)
	@$(BIN)/python -m bench.profile docs/benchmarks.json
	@$(BIN)/python -m bench.report docs/benchmarks.json docs

bench-quick: venv $(if $(NODE),npm) ## the same with tiny numbers that mean nothing, to see that it works
	@$(BIN)/python -m bench --quick $(BENCH)

fuzz: venv ## fuzz whatever reads foreign bytes, guided by coverage, a minute per target; longer with FUZZ=600
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'atheris>=3.0'
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ)

vectors: venv ## every golden vector
	@$(BIN)/python vectors/check.py vectors

coverage: venv ## lines and branches the fast tests never reach
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'coverage>=7.10'
	@$(BIN)/coverage run --branch --source=meshlib,mesh_relay,mesh_registry -m pytest -q -m 'not node' tests
	@$(BIN)/coverage report --skip-covered --show-missing

clean: ## remove everything the other targets made
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage interop/node_modules
