# make demo    predict an example, on a machine with python3 (3.11 or later) and nothing else
# make test    run the tests, in an environment of their own; on two cores, or as many as WORKERS says
# make lint    ruff, mypy and import-linter, in the same environment
# make clean   remove both environments and all caches
#
# PIP_ARGS goes to every `pip install`, such as --extra-index-url with PyTorch's index of CPU wheels, which saves a large
# download on a machine without a GPU.

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2
DEMO := .venv
TEST := .venv-test
PIP = -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: demo test lint clean

demo: $(DEMO)/ready
	$(DEMO)/bin/moemodel predict examples/olmoe-1b-7b.yaml

# Tests of a file stay together, for they share what took long to make. In their order: the longest benchmarks come first.
# Dozens of processes are started, which find compiled modules, whatever the environment says.
test: $(TEST)/ready
	PYTHONDONTWRITEBYTECODE= $(TEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(TEST)/ready
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy
	$(TEST)/bin/lint-imports

# The stamp is written last, so that an interrupted installation starts again.
$(DEMO)/ready: pyproject.toml | python
	$(PYTHON) -m venv --clear $(DEMO)
	$(DEMO)/bin/python $(PIP) --editable .
	touch $@

$(TEST)/ready: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv --clear $(TEST)
	$(TEST)/bin/python $(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"moemodel needs Python 3.11 or later; found %s. Name another with: make PYTHON=python3.12 ..." % sys.version.split()[0])'

clean:
	rm -rf $(DEMO) $(TEST) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
