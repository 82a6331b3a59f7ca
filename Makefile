# `make demo` and `make test` work from a fresh clone: they install what they need. A second run is
# quick. PYTHON=python3.12 make ... uses another interpreter, VENV=dir another environment.

# compressai needs numpy below 2, and numpy below 2 needs Python below 3.13.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt \
  --upgrade-strategy only-if-needed
# What is installed: for the demo, for everything except the site, and for the site.
DEMO := $(VENV)/.demo
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs
# torch comes with 4.5 GB of CUDA libraries. They are left out unless there is an NVIDIA GPU. CUDA=1
# installs them in any case, CUDA= never.
CUDA ?= $(shell command -v nvidia-smi)
# The bundles of the demo. BUNDLE knows ten classes, GENERAL a thousand.
BUNDLE := bundles/ours_n4
GENERAL := bundles/n4_lite2
# Each test process takes up to 4 GB of memory.
TEST_PROCESSES ?= 2
# The C library for browsers, and the page that cloud-serve has at /try.
WASM := web/dist/edgecloud.wasm
PAGE := runtime/service/page
comma := ,
space := $(subst ,, )
WASM_FUNCTIONS := malloc free $(addprefix edgecloud_,version bundle_from_memory bundle_close \
  bundle_describe bundle_has_rates encoder_new encoder_free encoder_kernel encoder_ask encode prepare)
EXPORTED_FROM := $(wildcard $(patsubst bundles/%,checkpoints/%/lmb*,$(BUNDLE) $(GENERAL)) \
  checkpoints/*.safetensors export/*.py export/*/*.py training/models.py training/checkpoint.py training/weights.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-cluster lint types docs fuzz bench wheel web clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(DEMO): pyproject.toml constraints.txt setup.py MANIFEST.in .ci/cpu_torch.py $(wildcard csrc/*/*)
	@test -n "$(PYTHON)" || { \
	  echo "make: no Python 3.11 or 3.12 found; set PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -n "$(CUDA)" || { $(PIP_INSTALL) --no-deps torch && $(BIN)/python .ci/cpu_torch.py; }
	$(PIP_INSTALL) -e '.[export]'
	touch $@

$(INSTALLED): $(DEMO)
	$(PIP_INSTALL) -e '.[cloud,export,train,bench,dev]'
	$(BIN)/python -m pip check
	touch $@

$(BUNDLE)/manifest.json $(GENERAL)/manifest.json: bundles/%/manifest.json: $(EXPORTED_FROM) | $(DEMO)
	$(BIN)/python -m export $*

demo: $(DEMO) $(BUNDLE)/manifest.json $(GENERAL)/manifest.json ## install, export two models, encode and classify an image with each
	$(BIN)/edge-encode docs/demo/golf_ball.jpg -o feat.bin
	$(BIN)/cloud-decode feat.bin --top-k 3
	$(BIN)/edge-encode docs/demo/golf_ball.jpg -o feat.bin --bundle $(GENERAL)
	$(BIN)/cloud-decode feat.bin --top-k 3 --bundle $(GENERAL)

test: $(INSTALLED) $(BUNDLE)/manifest.json ## run the fast tests
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile \
	  -m "not slow and not cluster"

test-all: $(INSTALLED) $(BUNDLE)/manifest.json ## run all tests, one after another
	$(BIN)/python -m pytest -q

test-cluster: $(INSTALLED) $(BUNDLE)/manifest.json ## run the tests that start a Ray cluster
	$(BIN)/python -m pytest -q -s -m cluster

lint: $(INSTALLED) ## check rules, layout and spelling (ruff, clang-format, codespell)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*/*.?pp examples/*/*.?pp
	$(BIN)/codespell

types: $(INSTALLED) ## check types (mypy)
	$(BIN)/mypy

$(DOCS): $(INSTALLED)
	$(PIP_INSTALL) -e '.[docs]'
	touch $@

# Without --quiet, because --quiet hides warnings from --strict.
docs: $(DOCS) ## build the documentation site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: ## fuzz the C++ code for a minute (FUZZ_SECONDS=2400: for forty)
	.ci/fuzz

bench: $(INSTALLED) $(BUNDLE)/manifest.json ## time the encoder on this machine
	$(BIN)/python benchmarks/latency.py

wheel: $(BUNDLE)/manifest.json ## build dist/: an sdist, and a tested wheel for each Python found
	.ci/wheels

# A module without glue code in JavaScript. -fwasm-exceptions: the library reports by exceptions
# inside, and engines have them. Threads would need shared memory, which few pages may have.
$(WASM): $(wildcard csrc/*/*.?pp csrc/*/*.h) Makefile
	mkdir -p $(@D)
	em++ -std=c++17 -O3 -msimd128 -ffp-contract=off -fwasm-exceptions -fvisibility=hidden \
	  -Wall -Wextra -Werror -DEDGECLOUD_NO_THREADS csrc/library/edgecloud.cpp \
	  --no-entry -sSTANDALONE_WASM -sALLOW_MEMORY_GROWTH -sMALLOC=emmalloc \
	  -sEXPORTED_FUNCTIONS=$(subst $(space),$(comma),$(WASM_FUNCTIONS:%=_%)) -o $(@D)/part.wasm
	mv $(@D)/part.wasm $@

web/dist/index.js: $(wildcard web/src/*)
	mkdir -p $(@D)
	cp web/src/* $(@D)

# Flat, because each file of it is one path of the service.
$(PAGE)/index.html: $(WASM) web/dist/index.js $(wildcard web/try/*)
	rm -rf $(PAGE)
	mkdir -p $(PAGE)/try
	cp web/dist/*.js $(WASM) web/try/try.js web/try/try.css $(PAGE)/try
	cp web/try/index.html $(PAGE)

web: $(PAGE)/index.html ## build the encoder for browsers, and the page /try (needs emscripten)

clean: ## remove the environment, bundles and everything that was built
	rm -rf $(VENV) bundles build dist *.egg-info runtime/*/_*.so feat.bin
	rm -rf web/dist web/node_modules $(PAGE)
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
