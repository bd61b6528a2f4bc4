# Two commands: `make audit` does the main job on the embedded default, `make test` proves the installation.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: audit test lint types floors bench docs clean

$(VENV)/.core: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,onnx,hub]"
	touch $@

audit: $(VENV)/.core
	$(BIN)/holdfast audit

test: $(VENV)/.dev lint types floors
	$(BIN)/pytest -n 2
	$(BIN)/holdfast reproduce --all --smoke

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "torchattacks==3.5.1"
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site
