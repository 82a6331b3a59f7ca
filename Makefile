# `make demo` and `make test` do all that they need from nothing; a second run is quick.
# PYTHON=python3.12 make ... chooses another interpreter, VENV=dir another environment.

# compressai needs numpy below 2, and so Python below 3.13.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUNDLE := bundles/ours_n4
FUZZ_SECONDS ?= 60
# Each process of the tests takes up to 4 GB.
TEST_PROCESSES ?= 2
FUZZ_FLAGS := -std=c++17 -O2 -g -fno-sanitize-recover=all -fsanitize=address,undefined
CHECKPOINT := $(wildcard checkpoints/ours_n4/lmb1.28.safetensors)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-cluster lint types docs fuzz bench wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt setup.py MANIFEST.in $(wildcard csrc/*/*)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 here; name one with PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[cloud,export,train,bench,dev]'
	$(BIN)/python -m pip check
	touch $@

$(BUNDLE)/manifest.json: $(CHECKPOINT) $(CHECKPOINT:.safetensors=.counts.json) $(CHECKPOINT:.safetensors=.ranges.json) $(wildcard export/*.py export/*/*.py training/models.py training/checkpoint.py) | $(INSTALLED)
	$(BIN)/python -m export ours_n4

demo: $(INSTALLED) $(BUNDLE)/manifest.json ## install, export the default model, encode a picture, decode it, print the class
	$(BIN)/edge-encode docs/demo/golf_ball.jpg -o feat.bin
	$(BIN)/cloud-decode feat.bin --top-k 3

test: $(INSTALLED) $(BUNDLE)/manifest.json ## run the tests
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile -m "not slow and not cluster"

test-all: $(INSTALLED) $(BUNDLE)/manifest.json ## run the tests, the slow ones too
	$(BIN)/python -m pytest -q

test-cluster: $(INSTALLED) $(BUNDLE)/manifest.json ## run the tests that start a Ray cluster of two nodes
	$(BIN)/python -m pytest -q -s -m cluster

lint: $(INSTALLED) ## ruff: rules and layout; codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED) ## mypy
	$(BIN)/mypy

DOCS := $(VENV)/.docs

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[docs]'
	touch $@

# Not --quiet, with which --strict counts no warnings.
docs: $(DOCS) ## build the site of docs/ in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

LIBFUZZER = echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' | clang++ $(FUZZ_FLAGS),fuzzer -x c++ - -o build/libfuzzer

fuzz: ## a minute of fuzzing the C++ code under sanitizers (FUZZ_SECONDS=2400 for ten minutes a target)
	@mkdir -p build; if $(LIBFUZZER) 2>/dev/null; then \
	  for target in any_tables any_payload round_trip any_jpeg; do ( set -ex; mkdir -p build/corpus/$$target; \
	    clang++ $(FUZZ_FLAGS),fuzzer -DFUZZ_TARGET=$$target csrc/fuzz/fuzz.cpp -o build/fuzz_$$target; \
	    build/fuzz_$$target -max_total_time=$$(( $(FUZZ_SECONDS) / 4 )) -verbosity=0 -print_funcs=0 -print_final_stats=1 -artifact_prefix=build/ \
	      build/corpus/$$target tests/corpus/$$target ) || exit 1; done; \
	elif test "$$CI" = true; then echo "no clang++ with libFuzzer here, which CI must have: apt-get install clang and its libclang-rt-*-dev" >&2; exit 1; \
	else echo "no clang++ with libFuzzer here: random inputs instead (apt-get install clang and its libclang-rt-*-dev)"; set -ex; \
	  $(CXX) $(FUZZ_FLAGS) csrc/fuzz/fuzz.cpp -o build/fuzz; build/fuzz $(FUZZ_SECONDS); fi

bench: $(INSTALLED) $(BUNDLE)/manifest.json ## time the encoder on this machine
	$(BIN)/python benchmarks/latency.py

wheel: $(BUNDLE)/manifest.json ## build dist/: an sdist, and a manylinux wheel for each CPython here, each tried by itself
	.ci/wheels

clean: ## remove the environment, bundles and everything built
	rm -rf $(VENV) bundles build dist *.egg-info runtime/codec/_coder*.so feat.bin .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
