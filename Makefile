# Every target sets up what it needs; the environment is .venv in the project root.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.complete

.PHONY: setup demo serve test lint bench eval card clean

setup: $(STAMP)

# torch first and pinned: resolved together with the rest, pip would take a build with gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,eval,dev]'
	touch $@

demo: setup
	$(BIN)/python -m services.demo $(ARGS)

serve: setup
	$(BIN)/occam serve $(ARGS)

test: setup
	$(BIN)/pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.bench $(ARGS)

eval: setup
	$(BIN)/python -m pipelines.evaluation $(ARGS)

card: setup
	$(BIN)/python -m pipelines.evaluation.card $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
