# Two commands do all the set-up on a machine with Python >= 3.11 and make.
#   make demo    install, then run the main job on offline data, or go on with it: report in outputs/demo/report.md
#   make test    install, then format check, lint, types, tests
#   make test-all  the same with the tests that start real launchers, agents and loggers; what CI runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# e.g. make demo DEMO_ARGS="sparsity=0.7 output_dir=outputs/demo-0.7"
DEMO_ARGS ?=

# Where this is set (images of containers often do) every process would compile all that it imports: 22 s more for each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check format types unit unit-all clean

demo: $(VENV)/.installed-demo
	$(BIN)/python -m cap.train experiment=demo output_dir=outputs/demo resume=true $(DEMO_ARGS)

test: check types unit

test-all: check types unit-all

# What CI and pre-commit run, one by one.
check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2

unit-all: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Without --no-compile pip compiles every file of every package for a minute or two; Python compiles what is imported, and
# keeps it.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[demo,dev]"
	touch $@ $(VENV)/.installed-demo
