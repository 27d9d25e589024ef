# The two commands to know: `make demo` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo example pictures test test-all bench check format types clean

help:
	@echo "make demo      pack, inspect, verify and expand the trained checkpoint in tests/data"
	@echo "make example   train LoRA and VB-LoRA on the same task, three runs of each (ten minutes on two cores)"
	@echo "make pictures  draw the README's pictures again"
	@echo "make test      the tests (about five minutes on two cores)"
	@echo "make test-all  the tests, the heavy ones too"
	@echo "make bench     measure against PEFT and print the table"
	@echo "make check     lint, formatting and types"

# The base package alone: no PyTorch.
$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# Everything that tests and benchmarks need.
$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/base
	@BIN=$(BIN) sh tests/demo.sh

example: $(VENV)/dev
	$(BIN)/python -m tests.examples.classify_reviews --seeds 3

pictures: $(VENV)/dev
	$(BIN)/python -m tests.pictures spec/pictures

test: $(VENV)/dev
	$(BIN)/python -m pytest

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -m ''

bench: $(VENV)/dev
	$(BIN)/python -m tests.bench

check: $(VENV)/dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy wants the tree as it is installed, where converters/ is vbfmt.converters.
types: $(VENV)/dev
	@rm -rf build/types && mkdir -p build/types/vbfmt
	@for part in vbfmt/*; do ln -s "../../../$$part" build/types/vbfmt/; done
	@ln -s ../../../converters build/types/vbfmt/converters
	MYPYPATH=build/types $(BIN)/mypy -p vbfmt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
