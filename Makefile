# `make demo` and `make test` set up everything they need. VENV and PYTHON may be overridden: make test VENV=/tmp/v
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo demo-rollback up test test-kernels lint simulate bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.run ## from nothing to a decided FP8 rollout (about 6 minutes, installation included)
	@$(BIN)/crossfade demo $(ARGS)

demo-rollback: $(VENV)/.run ## the same with a really damaged variant: must end rolled back
	@$(BIN)/crossfade demo --rollback $(ARGS)

up: $(VENV)/.run ## keep the service running on 127.0.0.1 until Ctrl-C
	@$(BIN)/crossfade up $(ARGS)

test: $(VENV)/.dev ## unit, property and integration tests, on real servers started from wheels
	@$(BIN)/python -m pytest $(ARGS)

test-kernels: $(VENV)/.kernels ## the engine's Triton kernels on a CPU, by Triton's interpreter (fetches another 250 MB)
	@CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(BIN)/python -m pytest -m gpu -q -rfE tests/*/test_engine*gpu.py $(ARGS)

lint: $(VENV)/.dev ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

simulate: $(VENV)/.dev ## the statistics' tables by simulation, with intervals (about 10 minutes on two cores)
	@$(BIN)/python -m stats.simulation --out tests/bench/results/simulate.md
	@$(BIN)/python -m pytest -m simulation $(ARGS)

bench: $(VENV)/.dev ## every benchmark that needs no GPU, into tests/bench/results
	@$(BIN)/python tests/bench/quant_cpu.py
	@$(BIN)/python tests/bench/report.py
	@$(BIN)/python tests/bench/real_data.py

clean: ## remove the virtual environment and the service's own files
	rm -rf $(VENV) .crossfade

# pip installs by constraints.txt, so that every machine runs the same versions.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Crossfade needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "this Python cannot make virtual environments: apt install python3-venv"; rm -rf $(VENV); exit 1; }

define install
@echo "installing into $(VENV) (two to three minutes the first time)"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(1)'
endef

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,[dev])
	@touch $@ $(VENV)/.run

$(VENV)/.kernels: pyproject.toml constraints.txt | $(VENV)/.dev
	$(call install,[kernels])
	@touch $@
