# Everything a contributor or a newcomer does. `make demo` and `make test` set up what they need.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo demo-llm test test-slow test-all check format proto bench clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment.

PROTO_OUT ?= client
proto: $(READY) ## Generate client/unmask/v1 from proto/.
	@mkdir -p $(PROTO_OUT)/unmask/v1
	@rm -f $(PROTO_OUT)/unmask/v1/*_pb2*
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
	  --python_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) \
	  --mypy_out=$(PROTO_OUT) --mypy_grpc_out=$(PROTO_OUT) proto/unmask/v1/*.proto

test: $(READY) ## Run the tests (the slow ones too: make test-all).
	$(BIN)/python -m pytest

test-slow: $(READY) ## Run the slow tests.
	$(BIN)/python -m pytest -m slow

test-all: test test-slow ## Run all tests.

check: $(READY) ## Lint, types, protos, and whether generated code is current.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto
	$(BIN)/buf format -d --exit-code proto
	@$(MAKE) --no-print-directory proto PROTO_OUT=build/proto >/dev/null
	@diff -r -x __pycache__ -x __init__.py build/proto/unmask/v1 client/unmask/v1 || \
	  (echo "client/unmask/v1 is stale: run make proto" && false)
	$(BIN)/mypy

format: $(READY) ## Format everything.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format -w proto
