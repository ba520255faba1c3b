# Everything a newcomer needs: `make train` and `make test` install what they use into .venv first.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test test-slow check docs wheel install

# One thread: at this size a second one gains little, and on a machine that does other work it costs a lot.
train: install
	OMP_NUM_THREADS=1 $(BIN)/phi-mace-train --dataset ala3_gfn2 --compare --time_limit 14.5 --work_dir runs --restart_latest

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What takes longer, of a minute or two each.
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

# Rules of style, layout and types, as they are in pyproject.toml.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site. A broken link or a docstring that cannot be read is an error.
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

# dist/*.whl, to be installed elsewhere by pip. setuptools would take what an earlier build left into it.
wheel: install
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build/lib build/bdist.*

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@
