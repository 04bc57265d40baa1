# Everything is built inside this checkout: .venv for packages, .models for the demo's model.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
SMOLLM2 := .models/SmolLM2-135M-Instruct.Q4_1.gguf
EXTRAS := report prove search cluster dev llama

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test test-fast lint coverage docs dist lock bench clean

setup: .venv/ready

.venv/packages: pyproject.toml requirements.lock
	@echo "setup 1/2: Python packages into .venv, about a minute"
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@grep -v -E '^(llama-cpp-python|ray)==' requirements.lock > .venv/requirements.txt
	@$(BIN)/python -m pip install --quiet --requirement .venv/requirements.txt
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# Ray has no packages for some systems, and llama-cpp-python comes as source and is compiled here, with
# the RPC servers that stand for GPUs in the tests. pip may have a package in its cache that was built
# without them: only then is it built once more. This step is not quiet: pip says each minute that it is
# still building.
LLAMA := --constraint requirements.lock --no-binary llama-cpp-python
HAS_RPC := from ggufrope.runtime import library; raise SystemExit("RPC" not in library.backends())

.venv/ready: export CMAKE_ARGS := -DGGML_RPC=on $(CMAKE_ARGS)
.venv/ready: .venv/packages
	@echo "setup 2/2: compiling llama.cpp, about 5 minutes on 2 cores (here: $(CMAKE_BUILD_PARALLEL_LEVEL))"
	@$(BIN)/python -m pip install $(LLAMA) --editable '.[llama,cluster]'
	@$(BIN)/python -c '$(HAS_RPC)' || $(BIN)/python -m pip install $(LLAMA) --no-cache-dir --no-deps --force-reinstall llama-cpp-python
	@touch $@
	@echo "setup done: $(BIN)/ggufrope --help"

$(SMOLLM2): tools/fetch_smollm2.py | .venv/ready
	@echo "fetching SmolLM2-135M-Instruct, 94 MiB, for the demo and the tests"
	@$(BIN)/python tools/fetch_smollm2.py $@

demo: .venv/ready $(SMOLLM2)
	$(BIN)/python tools/demo.py $(SMOLLM2)

test: .venv/ready $(SMOLLM2)
	$(BIN)/python -m pytest

# What needs no llama.cpp, and so no compiler.
test-fast: .venv/packages
	$(BIN)/python -m pytest -m "not llama"

lint: .venv/packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos

# One test fills a disk, where coverage cannot store what it saw.
coverage: .venv/ready $(SMOLLM2)
	$(BIN)/python -m coverage run -m pytest --deselect \
		tests/runs/test_damage.py::test_a_full_disk_ends_a_run_that_can_be_taken_up
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m tools.line_coverage 95 ggufrope/container ggufrope/rope ggufrope/patching

docs: .venv/packages
	$(BIN)/python -m tools.docs

dist: .venv/packages
	$(BIN)/python -m tools.distributions

# Renews the versions that developers and CI use; users get the bounds of pyproject.toml.
lock:
	$(BIN)/uv pip compile --universal --quiet --upgrade --no-annotate --no-header --no-emit-index-url \
		--python-version 3.10 $(EXTRAS:%=--extra %) --output-file requirements.lock pyproject.toml

bench: .venv/ready $(SMOLLM2)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .models build dist *.egg-info
