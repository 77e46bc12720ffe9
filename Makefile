# One environment serves every target; it is rebuilt when what it is made from changes.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.made

.PHONY: demo test check clean

demo: $(SETUP)
	$(BIN)/fusecli fuse sample_features/img.npy sample_features/txt.npy --report -f -o $(VENV)/demo.fused.npy
	$(BIN)/fusecli fuse sample_features/astronaut.image.npy sample_features/astronaut.text.npy --report -f -o $(VENV)/demo.patches.fused.npy

test: $(SETUP)
	$(BIN)/python -m pytest -n 2

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,parquet,ray]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
