# Two commands do all: `make repro` (set up, run the pipeline, say where the report lies) and `make test`.
PYTHON ?= python3
WIRING ?= default
VENV := .venv
REFERENCE := .venv-reference
BIN := $(VENV)/bin
# uv does not look at pip's local wheels by itself
UV_ENV := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)")
export PATH := $(CURDIR)/$(BIN):$(PATH)

# what installs into the environment $(1)
into = $(if $(shell command -v uv),$(UV_ENV) uv pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --quiet --disable-pip-version-check)

.PHONY: help install wire repro pretrain test lint types slow reference lock clean
help:  ## these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/'

install: $(VENV)/installed  ## .venv with everything that requirements.lock pins

$(VENV)/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v uv >/dev/null; then \
	  echo "installing with uv"; \
	  $(UV_ENV) uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock && \
	  $(UV_ENV) uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
	  echo "installing with pip (uv would be quicker)"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@

wire: install
	@if [ "$(WIRING)" = default ]; then rm -f params.yaml; \
	elif [ -f configs/wirings/$(WIRING).yaml ]; then ln -sf configs/wirings/$(WIRING).yaml params.yaml; \
	else echo "no wiring $(WIRING); there are: default $(basename $(notdir $(wildcard configs/wirings/*.yaml)))" >&2; exit 2; fi

repro: wire  ## run the pipeline; WIRING=eegmat for the real cross-subject task; also joint, spikes, v1, muse
	$(BIN)/dvc repro report@$(WIRING)
	@$(BIN)/brainfm info data/results/report/$(WIRING).html

pretrain: WIRING := brainomni
pretrain: wire  ## one model with all that it needs: KEY=brainomni_test, brainomni_tiny or brainomni_base
	$(BIN)/dvc repro pretrain@$(KEY)
	@$(BIN)/brainfm info data/models/$(KEY)

# a process per core, and one thread in each
test: install  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8

slow: install  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 4

reference: $(REFERENCE)/installed  ## tests against torch_brain, nlb_tools, MOABB and scikit-image, in .venv-reference
	$(REFERENCE)/bin/python -W ignore -c "import moabb, nlb_tools.evaluation, skimage.metrics, torch_brain.models"
	OMP_NUM_THREADS=1 $(REFERENCE)/bin/python -m pytest -q -m reference tests

$(REFERENCE)/installed: requirements.lock pyproject.toml
	test -x $(REFERENCE)/bin/python || $(PYTHON) -m venv $(REFERENCE)
	$(call into,$(REFERENCE)) -r requirements.lock -e '.[reference]'
	$(call into,$(REFERENCE)) --no-deps nlb_tools==0.0.4
	@touch $@

lint: install  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install  ## mypy over the public surface
	$(BIN)/mypy

lock:  ## pin anew: needs uv; the file names no index, and torch no build
	$(UV_ENV) uv pip compile pyproject.toml --universal --python-version 3.11 --extra test --no-emit-index-url \
	  --no-annotate --no-header -q -o requirements.lock
	@sed -i -E '/^(nvidia-(cu|nv|nccl)|triton|cuda-)/d; s/^torch==([0-9.]+)\+cpu.*/torch==\1/; s/^torch==([0-9.]+) ;.*/torch==\1/' requirements.lock
	@awk '!seen[$$0]++' requirements.lock > requirements.lock.part && mv requirements.lock.part requirements.lock

clean:  ## remove what the pipeline made, but not what it fetched
	rm -rf data/shards data/codes data/models data/results data/work
