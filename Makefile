# Penstock. `make` lists the targets; `make demo` and `make test` do all that a fresh machine needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint bench bench-peers drill gpu-check gpu-bench gpu-tune screenshots pins clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Where this is set, each of the hundreds of processes that demo and tests start would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install Penstock with everything it is developed with

# torch goes first and alone: its pinned version must be settled before another package asks for "any torch".
# Modules are compiled when they are first imported: of 27,000 files most never are.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Penstock needs Python 3.11 or later, and this is " + sys.version.split()[0] + "; name another with PYTHON=") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); this takes a few minutes the first time."
	@$(BIN)/pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Start everything on embedded services, run real invoices through it, stop everything
	@$(BIN)/penstock demo

up: setup  ## Start the whole platform on this machine; Ctrl-C stops it
	@$(BIN)/penstock up

test: setup  ## Run all tests, in four processes (installs Chromium for the browser tests when it can)
	@deploy/install-chromium
	@$(BIN)/python -m pytest -n 4 --no-loadscope-reorder

lint: setup  ## Style, types and the import rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup  ## Measure submit latency, doorbells, the platform, the engine, gates and compression; writes bench/results/
	@$(BIN)/python -m bench.submit --json bench/results/submit.json
	@$(BIN)/python -m bench.job_path --json bench/results/job-path.json
	@$(BIN)/python -m bench.claims --json bench/results/claims.json
	@$(BIN)/python -m bench.platform --json bench/results/platform.json
	@$(BIN)/python -m bench.pages --json bench/results/pages.json
	@$(BIN)/python -m bench.engine --json bench/results/engine-cpu.json
	@$(BIN)/python -m bench.gates --json bench/results/gates.json
	@$(BIN)/python -m bench.quantize --json bench/results/quantize.json
	@$(BIN)/python -m bench.quality --json bench/results/quality.json --picture docs/images/quality.svg

bench-peers: .venv-peers/.installed  ## Compile llama.cpp for this machine, for `make bench` to measure beside the engine

.venv-peers/.installed: bench/peers.txt
	@command -v c++ >/dev/null || { echo "bench-peers compiles llama.cpp, and there is no C++ compiler here (apt install g++)" >&2; exit 1; }
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@echo "Compiling llama.cpp into .venv-peers; this takes about ten minutes."
	@CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peers/bin/pip install -q --disable-pip-version-check --requirement bench/peers.txt
	@touch $@

drill: setup  ## Kill engines, workers, Redis and the supervisor under load, and see that nothing is lost
	@$(BIN)/python -m pytest tests/worker tests/platform/embedded tests/acceptance -m drill

# These run on a bare machine with torch, transformers and pytest: nothing is installed, no service is needed.
# Logs and figures go to $OUT where that is set.
GPU_RUN = PYTHONPATH=.:worker:kernels $(PYTHON) -u -m

gpu-check:  ## Check kernels and engine on this machine's GPU (needs torch with CUDA, transformers, pytest)
	@$(GPU_RUN) tests.gpu.check --log "$${OUT:-bench/results}/gpu-check.log"

gpu-bench:  ## Measure engine, kernels and peers on this machine's GPU, in nine minutes
	@$(GPU_RUN) bench.gpu --out "$${OUT:-bench/results}"

gpu-tune:  ## Measure tiles on this machine's GPU, and write the table of its name
	@$(GPU_RUN) bench.kernels --tune --json "$${OUT:-bench/results}/gpu-tiles.json"

screenshots: setup  ## Take docs/screenshots anew: customers' pages of a running platform, operators' of a seeded one
	@$(BIN)/python -m tests.browser.screenshots
	@$(BIN)/python -m tests.browser.admin_screenshots

pins: setup  ## Write constraints.txt from what is installed in .venv
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
