# Every target sets up what it needs; the environment is .venv in the project root.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.complete

.PHONY: setup demo serve test soak lint bench eval card browser prometheus screenshots dashboards previews rehearse clean

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

# Files are shared out among the cores (tests/conftest.py); one thread each, for torch would take all in every process.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto $(ARGS)

soak: setup
	$(BIN)/python -m tests.soak $(ARGS)

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

# What the playground is tested in; its tests skip without one.
browser:
	@command -v apt-get >/dev/null || { echo "There is no apt-get here: install Chromium, and name it in OCCAM_BROWSER."; exit 1; }
	$(if $(filter-out 0,$(shell id -u)),sudo) apt-get update -qq
	$(if $(filter-out 0,$(shell id -u)),sudo) apt-get install -qq --no-install-recommends chromium-headless-shell

# What rules and dashboards are tested with; its tests skip without one. Where there is systemd, Debian's package starts a
# server on port 9090 too.
prometheus:
	@command -v apt-get >/dev/null || { echo "There is no apt-get here: install Prometheus, and promtool."; exit 1; }
	$(if $(filter-out 0,$(shell id -u)),sudo) apt-get update -qq
	$(if $(filter-out 0,$(shell id -u)),sudo) apt-get install -qq --no-install-recommends prometheus

screenshots: setup
	SCREENSHOTS=docs/playground $(BIN)/pytest -m soak tests/page/test_screenshots.py

# The JSON that Grafana reads, from deploy/grafana/source.
dashboards: setup
	$(BIN)/python deploy/grafana/generate.py

# Pictures of the dashboards after minutes of a real load, into docs/dashboards.
previews: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.deploy.preview $(ARGS)

# Follows deploy/Dockerfile in a bare root folder; needs root, debootstrap, and apt's and pip's networks.
rehearse: setup
	$(BIN)/python -m tests.deploy.rehearse runs/rehearsal $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
