# Two commands: `make audit` does the main job on the embedded default, `make test` proves the installation.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: audit test slow explore lint types floors bench docs clean

$(VENV)/.core: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable ".[dev,onnx,hub]"
	touch $@

audit: $(VENV)/.core
	$(BIN)/holdfast audit

test: $(VENV)/.dev lint types floors
	$(BIN)/pytest -n 2
	$(BIN)/holdfast reproduce --all --smoke

slow: $(VENV)/.dev
	$(BIN)/pytest -n 2 -m slow --timeout=3000

explore: $(VENV)/.dev
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest -n 2 -m hypothesis --timeout=3000

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(PIP) --editable ".[bench]"
	$(PIP) --no-deps torchattacks pytorch-ood adv-lib adversarial-robustness-toolbox
	$(PIP) --no-deps git+https://github.com/fra31/auto-attack@a392200
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks attacks
	$(BIN)/python -m benchmarks --table

docs: $(VENV)/.dev
	$(PIP) --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site
