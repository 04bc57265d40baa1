# Everything is built inside this checkout: .venv for packages, .models for the demo's model.
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := .models/SmolLM2-135M-Instruct.Q4_1.gguf

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test lint bench clean

setup: .venv/ready

# llama-cpp-python comes as source and is compiled here. The last step is not quiet: pip says each
# minute that it is still building.
.venv/ready: pyproject.toml
	@echo "setup 1/2: Python packages into .venv, about a minute"
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[report,prove,search,cluster,dev]'
	@echo "setup 2/2: compiling llama.cpp, about 5 minutes on 2 cores (here: $(CMAKE_BUILD_PARALLEL_LEVEL))"
	@$(BIN)/python -m pip install --no-binary llama-cpp-python --editable '.[llama]'
	@touch $@
	@echo "setup done: $(BIN)/ggufrope --help"

$(SMOLLM2): tools/fetch_smollm2.py | .venv/ready
	@echo "fetching SmolLM2-135M-Instruct, 94 MiB, for the demo and the tests"
	@$(BIN)/python tools/fetch_smollm2.py $@

demo: .venv/ready $(SMOLLM2)
	$(BIN)/python tools/demo.py $(SMOLLM2)

test: .venv/ready $(SMOLLM2)
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready $(SMOLLM2)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .models build dist *.egg-info
