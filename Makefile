# One environment serves every target; it is rebuilt when what it is made from changes.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
TORCH  := $(VENV)/.made-torch
DEMO   := $(VENV)/.made-demo
DEV    := $(VENV)/.made-dev
EASY_VQA := sample_features/easy_vqa/pairs.csv

# Tests start fusecli many times: without compiled files each start would compile it again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test quick fuzz check coverage man clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(DEMO) ## install what the demo needs, fuse the shipped samples, train on easy-VQA
	@echo "make demo: fuses two shipped pairs, a second each; then trains, about 40 seconds on"
	@echo "two free cores: attention only, 12 epochs (train's default also tries other methods)."
	$(BIN)/fusecli fuse sample_features/img.npy sample_features/txt.npy --report -f -o $(VENV)/demo.fused.npy
	$(BIN)/fusecli fuse sample_features/astronaut.image.npy sample_features/astronaut.text.npy --report -f -o $(VENV)/demo.patches.fused.npy
	$(BIN)/fusecli train --manifest $(EASY_VQA) --method attention --epochs 12 -f -o $(VENV)/demo-run
	$(BIN)/fusecli evaluate $(VENV)/demo-run --manifest $(EASY_VQA)
	$(BIN)/fusecli fuse sample_features/easy_vqa/images.npy sample_features/easy_vqa/texts.npz --text-key q0000 --weights $(VENV)/demo-run -f -o $(VENV)/demo.trained.fused.npy

test: $(DEV) ## all tests
	@echo "make test: all tests; about 14 minutes on two cores."
	$(BIN)/python -m pytest -n 2

quick: $(DEV) ## one case of each test that is not marked slow or ray
	@echo "make quick: one case of each test that is not marked slow or ray; under a minute on two cores."
	$(BIN)/python -m pytest -n 2 --one-case -m "not slow and not ray"

fuzz: $(DEV) ## 20,000 damaged versions of every record that is read back, every call failing
	@echo "make fuzz: 20,000 damaged versions of every record, and every call of a batch failing"
	@echo "in every way; hours."
	FUSECLI_FUZZ=20000 $(BIN)/python -m pytest -n 2 tests/faults

check: $(DEV) ## ruff and mypy
	@echo "make check: ruff and mypy; about a minute."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Headers of 32 MB have to be refused within a second, which the tracing of every line takes too long for.
coverage: $(DEV) ## branch coverage of all tests
	@echo "make coverage: all tests, with branch coverage; about 27 minutes on two cores."
	$(BIN)/python -m pytest -n 2 -k "not large_header" --cov=fusecli --cov-branch --cov-report=term:skip-covered

$(TORCH): constraints.txt
	@echo "Making $(VENV): torch first (the version in constraints.txt), about a minute."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	touch $@

$(DEMO): $(TORCH) pyproject.toml
	@echo "Installing fusecli and what the demo needs into $(VENV)."
	$(BIN)/pip install -q -c constraints.txt -e '.[plot,train]'
	touch $@

$(DEV): $(TORCH) pyproject.toml
	@echo "Installing fusecli and what the tests need (Ray, mypy and others) into $(VENV), about a minute."
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,parquet,ray]'
	touch $@

man: $(DEMO) ## write the manual page to build/man/fusecli.1
	@mkdir -p build/man
	$(BIN)/python -m fusecli.cli.man > build/man/fusecli.1
	@echo "Read it with: man ./build/man/fusecli.1"

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
