# The same targets serve people and CI. Everything needed is installed by the targets themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NPM    := interop/node_modules/.package-lock.json

.PHONY: help venv check style types fast test demo interop vectors coverage clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## the virtual environment with everything for development

$(STAMP): pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

npm: $(NPM)

$(NPM): interop/package.json interop/package-lock.json
	@cd interop && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

style: venv
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .

types: venv
	@$(BIN)/mypy

fast: venv
	@$(BIN)/pytest -q -x -m 'not slow and not node' tests

check: style types fast ## style, types and the fast tests: run before every commit

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis interop/node_modules
