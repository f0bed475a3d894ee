# `make demo`: the whole experiment on the embedded cohort. `make test`: the tests. Both set up .venv first; nothing else is needed.
PYTHON ?= python3
CORES ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
SEED ?= 0
# seed 0 runs into results/, any other seed n into results/seed<n>
OTHER_SEED := $(filter-out 0,$(SEED))
RESULTS := results$(OTHER_SEED:%=/seed%)
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONUNBUFFERED=1

PHANTOM := results/phantom_model

.PHONY: env demo phantom-model test check scale schema lock clean help

help:
	@echo "make env    set up .venv from envs/requirements.lock"
	@echo "make demo   run the embedded experiment (2 cores: half an hour; CORES=N for more;"
	@echo "            SEED=n trains and samples with another seed, into results/seed<n>)"
	@echo "make phantom-model"
	@echo "            train the model of config/phantom.yaml into medsyn/phantom_model, for \`medsyn generate\`"
	@echo "            without --weights (2 cores: about an hour and a half; go on after a stop with the same command)"
	@echo "make test   run the tests"
	@echo "make check  style, types and workflow lint, as CI does"
	@echo "make scale  plan the paper's cohort: jobs and hours per rule"

env: .venv/.ready

.venv/.ready: envs/requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c "import ensurepip" || { echo "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "setting up .venv (once, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: env
	@$(RUN) $(BIN)/snakemake --cores $(CORES) --resources mem_mb=7000 --rerun-incomplete --show-failed-logs --quiet host reason $(OTHER_SEED:%=--config seed=% results_dir=$(RESULTS))
	@echo
	@echo "report:  $(RESULTS)/report.html"
	@echo "tables:  $(RESULTS)/eval/table1.csv ... table7.csv"
	@echo "figures: $(RESULTS)/eval/figures/"

phantom-model: env
	@$(RUN) $(BIN)/snakemake $(PHANTOM)/models/medsyn/run.json --cores $(CORES) --configfile config/phantom.yaml --rerun-incomplete --show-failed-logs --quiet host reason
	@$(BIN)/medsyn package-model --weights $(PHANTOM)/models/medsyn --results $(PHANTOM) --out medsyn/phantom_model --force

test: env
	@$(RUN) $(BIN)/pytest -n 2 --dist loadgroup

check: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check workflow
	@$(BIN)/mypy
	@$(RUN) $(BIN)/snakemake --lint

scale: env
	@$(RUN) $(BIN)/python benchmarks/scale.py

schema: env
	@$(BIN)/medsyn schema --out config/schema.json

lock: env
	@{ sed -n '/^#/p' envs/requirements.lock; $(BIN)/pip freeze --exclude-editable --exclude torch --exclude medsyn; } > envs/requirements.new
	@mv envs/requirements.new envs/requirements.lock

clean:
	rm -rf results .snakemake
