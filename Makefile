# The two commands to know: `make demo` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo example pictures test test-all second-reader coverage fuzz flips determinism mutation bench check format types clean

help:
	@echo "make demo      pack, inspect, verify and expand the trained checkpoint in tests/data"
	@echo "make example   train LoRA and VB-LoRA on the same task, three runs of each (some minutes)"
	@echo "make pictures  draw the README's pictures again"
	@echo "make test      the tests (about five minutes on two cores)"
	@echo "make test-all  the tests, the heavy ones too"
	@echo "make coverage  the tests with the branches of the library that they reach"
	@echo "make fuzz      two million damaged files, guided by coverage (about half an hour)"
	@echo "make flips     flip every bit of packed files (about ten minutes)"
	@echo "make determinism  the same bytes on every Python, numpy and msgpack that can be had"
	@echo "make mutation  what of the format's own code no test would miss"
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

# The second reader's packages (spec/javascript).
READER := spec/javascript
$(READER)/node_modules/installed: $(READER)/package.json $(READER)/package-lock.json
	cd $(READER) && npm ci --no-audit --no-fund
	@touch $@

second-reader: $(READER)/node_modules/installed

# Where there is no npm, the second reader's tests are skipped and say so.
ifneq ($(shell command -v npm 2>/dev/null),)
test test-all: second-reader
endif

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

coverage: $(VENV)/dev
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report

fuzz: $(VENV)/dev
	$(BIN)/python -m tests.fuzz packed 1200000
	$(BIN)/python -m tests.fuzz peft 400000
	$(BIN)/python -m tests.fuzz safetensors 600000
	$(BIN)/python -m tests.fuzz.reached

flips: $(VENV)/dev
	$(BIN)/python -m tests.flips

determinism: $(VENV)/dev
	$(BIN)/python -m tests.determinism

# In a copy, because mutmut writes beside what it changes.
mutation: $(VENV)/dev
	rm -rf build/mutation && mkdir -p build/mutation
	cp -r pyproject.toml vbfmt converters spec tests build/mutation
	cd build/mutation && ../../$(BIN)/mutmut run
	$(BIN)/python -m tests.mutation build/mutation

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
	rm -rf $(VENV) $(READER)/node_modules $(READER)/vblora.cjs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
