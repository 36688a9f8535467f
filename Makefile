# The two commands to begin with are `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: quickstart test check real base clean

quickstart: $(VENV)/.base  ## Train on the embedded calculator; before and after.
	$(RUN)/distil-jax train configs/calculator/quickstart.yaml

test: check  ## Everything that CI checks.
	$(RUN)/python tests/run.py

check: $(VENV)/.test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/basedpyright --pythonpath $(RUN)/python

real: $(VENV)/.test  ## A real model beside transformers; see docs/reference/models.md.
	@test -n "$$DISTIL_JAX_REAL_MODEL" || \
	  { echo "DISTIL_JAX_REAL_MODEL must name a folder with the model."; exit 1; }
	$(RUN)/pytest -q -p no:xdist tests/models/test_real_model.py

base: $(VENV)/.base  ## Make the embedded base model anew (about half an hour).
	$(RUN)/distil-jax train configs/calculator/base.yaml
	$(RUN)/distil-jax export configs/calculator/base.yaml \
	  distil_jax/models/assets/calculator

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.py | $(VENV)/bin/python
	@echo "Installing into $(VENV), 1.1 GB: half a minute or more."
	$(RUN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: setup.py | $(VENV)/bin/python
	@echo "Installing into $(VENV), with the test tools: a minute or more."
	$(RUN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.base
