# SPDX-License-Identifier: GPL-2.0-only
# The two commands that a fresh machine needs: `make soak` and `make test`.

DURATION ?= 2m
KERNEL ?= debian:6.1
FILESYSTEM ?= ext4
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A soak needs no test tools.
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test
# Keep byte code even if the environment forbids it: tests start many programs.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode
# Run as many tests in parallel as the machine has room for, the longest first (tests/conftest.py).
BESIDE := --numprocesses auto --dist loadgroup --no-loadscope-reorder

.PHONY: soak soak-long test test-fast lint check readme clean

# Succeeds if the soak ran, whether the kernel passed or failed: the verdict is printed either way.
soak: $(READY)
	@$(BIN)/dax-soak check --install
	@$(BIN)/dax-soak lab --kernel $(KERNEL) --filesystem $(FILESYSTEM) --duration $(DURATION) $(ARGS); \
		code=$$?; [ $$code -le 1 ] || exit $$code

# Ten minutes (DURATION) of each kernel on each file system without a false alarm, and ten times the
# usual inputs for each fuzzer.
soak-long: $(READY_TO_TEST)
	@$(BIN)/dax-soak check --install
	@DURATION=$(if $(filter-out file,$(origin DURATION)),$(DURATION),10m) $(BIN)/python -m pytest -m long

test: lint
	@$(BIN)/dax-soak check --install --for-tests
	@$(BIN)/python -m pytest $(BESIDE)

test-fast: $(READY_TO_TEST)
	@$(BIN)/python -m pytest $(BESIDE) -m 'not lab'

lint: $(READY_TO_TEST)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

check: $(READY)
	@$(BIN)/dax-soak check

# Generate the references of the configuration and the metrics.
readme: $(READY_TO_TEST)
	@$(BIN)/python -m soak.report.reference soak/config/README.md exporter/README.md

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install --yes --no-install-recommends -qq python3 python3-venv; \
		else \
			echo "Python's venv is missing: run 'apt-get install python3-venv' as root, then try again." >&2; \
			exit 2; \
		fi; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version)." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(BIN)/python
	@echo "Making the environment in $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(READY_TO_TEST): pyproject.toml | $(BIN)/python
	@echo "Making the environment in $(VENV), with test tools"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(READY)
