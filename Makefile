# Everything is built inside this checkout: .venv for packages, .models for the demo's model.
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := .models/SmolLM2-135M-Instruct.Q4_1.gguf
# `make demo FULL=1` goes to the full 16384 tokens.
FULL ?=

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test lint bench clean

setup: .venv/ready

# llama-cpp-python comes as source and is compiled here: about five minutes on two cores.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-binary llama-cpp-python --editable '.[llama,report,search,cluster,dev]'
	touch $@

$(SMOLLM2): tools/fetch_smollm2.py | .venv/ready
	$(BIN)/python tools/fetch_smollm2.py $@

demo: .venv/ready $(SMOLLM2)
	$(BIN)/python tools/demo.py $(SMOLLM2) $(if $(FULL),--full)

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
