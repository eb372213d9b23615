# make report   the page for the default model       make test   every check, as the CI runs it
.DEFAULT_GOAL := help
.PHONY: help setup test docs report dist format clean

PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
PYTEST_FLAGS ?=
# Processes of one thread each: most models in the tests are too small to gain from a second one.
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The install is editable, so only a change of the dependencies needs a new one. The stamp is
# written last: an interrupted set-up is repeated.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
		f"Python must be 3.11 or newer, got {v[0]}.{v[1]}; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time takes a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		-c constraints.txt -e '.[dev,figures]'
	@touch $@

setup: $(STAMP)  ## Create .venv and install the tested set of packages

test: setup  ## Format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

# Every code block is executed; a warning, a broken link or an error in a block fails the build, and
# so does a page that Chromium cannot show whole. Sphinx deals out runs of pages: four share two cores
# more evenly than two.
docs: setup  ## Build the site into docs/_build/html and check it
	rm -rf docs/_build
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going -n -j 4 \
		-d docs/_build/doctrees docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m site tests/test_docs.py

# The folder is this target's own: a report of another MODEL in it is replaced. What takes longer to
# measure than a report should is shown from its record, where MODEL has one.
RECORDS := experiments/records
# Of the patches, those whose figures answer C6: heads, frequency bands, massive pairs beside others.
PATCHED := heads bands_q bands_k massive_q massive_k pairs_q pairs_k
# The first set with rotation and without judges the claims on cause.
TWINS := stdlib stdlib_theta stdlib_window_32 stdlib_window_512 mixture mixture_unordered
report: setup  ## Analyse MODEL (default: smollm2-135m-instruct) and say where the page lies
	$(BIN)/mi-massive report $(MODEL) --out report --overwrite \
		$(addprefix --disruption ,$(wildcard $(RECORDS)/table1_$(MODEL).json)) \
		$(addprefix --conflict ,$(wildcard $(RECORDS)/conflict_$(MODEL).json)) \
		$(addprefix --fluency ,$(wildcard $(RECORDS)/figure3_$(MODEL).json)) \
		$(addprefix --patched ,$(wildcard $(PATCHED:%=$(RECORDS)/patching_%_$(MODEL).json))) \
		$(addprefix --quantization ,$(wildcard $(RECORDS)/state_quantization_$(MODEL).json)) \
		$(addprefix --quantization ,$(wildcard $(RECORDS)/quantization_$(MODEL).json)) \
		$(addprefix --surgery ,$(wildcard $(RECORDS)/surgery_$(MODEL).json)) \
		$(addprefix --twins ,$(wildcard $(TWINS:%=$(RECORDS)/twins_%_small.json)))

# In an environment of its own: what builds a release is no part of what is released.
TOOLS := build/tools
dist:  ## Build and check the wheel and the source distribution in dist/
	rm -rf dist $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check --quiet build==1.6.1 twine==7.0.0
	$(TOOLS)/bin/python -m build
	$(TOOLS)/bin/python -m twine check --strict dist/*
	$(TOOLS)/bin/python .ci/check_dist.py dist

format: setup  ## Format the code and apply the safe fixes of the linter
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment, the builds and the caches; reports stay
	rm -rf .venv build dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find mi_massive tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +
