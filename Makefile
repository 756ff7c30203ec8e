# Every target prepares .venv from requirements.lock when it is missing or stale.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Dozens of processes import the same files: what one has compiled serves the next.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed-from
PYTEST := $(BIN)/pytest
ALONE := ray or browser or postgres
FAST := not slow and not gpu and not ($(ALONE))
# those of ALONE stay in one process: they share one Ray cluster and one MLflow server
SPREAD := -n logical --maxprocesses 8

.PHONY: help setup demo serve stop test test-fast test-gpu conformance check bench parity openapi lock clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Install everything into .venv, as locked

# The stamp holds the digest of what was installed: a lock that is only touched installs nothing.
$(STAMP): requirements.lock pyproject.toml
	@wanted="$$(cat requirements.lock pyproject.toml | sha256sum)"; \
	if [ -x $(BIN)/simclr ] && [ "$$(cat $@ 2>/dev/null)" = "$$wanted" ]; then touch $@; exit 0; fi; \
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install it, or name another: make PYTHON=..." >&2; exit 2; }; \
	rm -f $@; \
	$(PYTHON) -m venv .venv; \
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements.lock; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	echo "$$wanted" > $@

demo: $(STAMP)  ## Pretrain on the embedded images, show what the encoder is worth, stop everything
	@$(BIN)/simclr demo $(ARGS)

serve: $(STAMP)  ## Start Ray, MLflow and the service, and keep serving until Ctrl-C
	@exec $(BIN)/simclr serve $(ARGS)

stop: $(STAMP)  ## End what an earlier serve left
	@$(BIN)/simclr stop $(ARGS)

test: $(STAMP)  ## All tests that run on one machine; as root it installs the Debian packages that some of them need
	@tests/install_tools.sh
	$(PYTEST) $(SPREAD) -m "not gpu and not ($(ALONE))" $(ARGS)
	$(PYTEST) -m "not gpu and ($(ALONE))" $(ARGS)

test-fast: $(STAMP)  ## The tests that need neither Ray nor a browser nor PostgreSQL: a minute or two
	$(PYTEST) $(SPREAD) -m "$(FAST)" $(ARGS)

test-gpu: $(STAMP)  ## The tests that need a CUDA device; their bodies run on the CPU in every test run
	$(PYTEST) -m gpu $(ARGS)

conformance: $(STAMP)  ## Ask the service by chance for MINUTES (5), from SEED if given; every answer against its document
	$(PYTEST) -n0 --timeout=0 -rP tests/unit/service/test_http_conformance.py \
		--conformance-minutes=$(or $(MINUTES),5) $(if $(SEED),--conformance-seed=$(SEED)) $(ARGS)

check: $(STAMP)  ## Lint, format, types, imports, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

bench: $(STAMP)  ## Measure against peers; each prints a ratio
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

parity: $(STAMP)  ## Compare the gradient of W workers with that of one, on an encoder with batch norm
	@$(BIN)/python -m trainer.parity $(ARGS)

openapi: $(STAMP)  ## Write docs/openapi.json anew
	$(BIN)/python -m service.openapi_copy > docs/openapi.json.new
	mv docs/openapi.json.new docs/openapi.json

# uv reads metadata alone where pip would download every wheel. uv.lock is not kept: one lock is enough.
lock:  ## Write requirements.lock anew from pyproject.toml
	@uv="$$(command -v uv || echo $(BIN)/uv)"; \
	[ -x "$$uv" ] || { echo "make: uv is missing; install it: pipx install uv" >&2; exit 2; }; \
	rm -f uv.lock; \
	"$$uv" lock --quiet --python $(PYTHON); \
	"$$uv" export --quiet --frozen --all-extras --no-emit-project --no-header --no-annotate --format requirements.txt \
		--output-file requirements.lock; \
	rm -f uv.lock

clean:  ## Remove what tools have cached; .venv and .simclr stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
