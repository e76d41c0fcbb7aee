# Every target installs its requirements in .venv; a second call installs nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Number of parallel test processes: one more than cores, since some tests wait.
WORKERS ?= 3
# Release of torch for `make lock`, the same for CPU and GPU.
TORCH ?= 2.13.0

# PyTorch's index for this machine's GPU, e.g. https://download.pytorch.org/whl/cu126 for a V100:
# docs/install.md. Stored in .venv, so that it is set once; a new one replaces torch.
TORCH_INDEX_URL ?=

# Tests start hundreds of processes, which would each compile our modules anew if bytecode were not
# kept; some environments set this variable.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INDEX := .venv/torch-index
# Beside the usual index, whose torch of the same release is older than one with a local version.
FROM_INDEX = $$(sed -n 's/^./--extra-index-url=&/p' $(INDEX))

.DEFAULT_GOAL := $(if $(TORCH_INDEX_URL),venv,help)

.PHONY: FORCE help quickstart check test lint format lock vendored venv clean

help:
	@echo "make quickstart  the whole chain in minutes: text, BERT, export, GLUE samples, table"
	@echo "make check       under a minute, after each edit: lint, types, laws of pure functions"
	@echo "make test        lint and types, then every test that takes seconds"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff rewrite what it can"
	@echo "make venv        only the set-up, in .venv; with a GPU: make TORCH_INDEX_URL=… (docs/install.md)"
	@echo "make lock        resolve requirements.lock and docker/*.lock again"
	@echo "make vendored    write the site's vendored files again from npm's packages of the locked versions"
	@echo "make clean       remove .venv and caches; runs and results stay"

quickstart: .venv/train
	$(BIN)/smallbench quickstart

# Tests of functions without files and processes, and of the layers.
PURE := tests/objectives tests/test_layers.py tests/test_config.py tests/test_registry.py \
	tests/test_cores.py tests/test_gpus.py tests/data/test_cleaning.py tests/data/test_loader.py \
	tests/models/test_flops.py tests/train/test_budget.py tests/glue/test_metrics.py \
	tests/glue/test_tasks.py tests/leaderboard/test_statistics.py tests/leaderboard/test_ranking.py

check: lint
	$(BIN)/python -m pytest $(PURE)

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=10

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: .venv/dev

vendored:
	smallbench/leaderboard/site/vendored.sh

# Stamps: an installation is repeated if its inputs have changed.
.venv/train: $(INDEX) pyproject.toml requirements.lock
	@echo "Installing the packages that training needs into .venv (minutes, the first time) …"
	$(PIP) $(FROM_INDEX) -c requirements.lock -e '.[train]'
	@touch $@

.venv/dev: $(INDEX) pyproject.toml requirements.lock
	@echo "Installing the packages that training and tests need into .venv (minutes, the first time) …"
	$(PIP) $(FROM_INDEX) -c requirements.lock -e '.[train,deepspeed,energy,wandb,report,dev]'
	@echo "Compiling DeepSpeed's operators (two minutes, once) …"
	@DS_ACCELERATOR=cpu $(BIN)/python -m smallbench.train.deepspeed_engine >/dev/null 2>.venv/ops.log \
		|| echo "They could not be compiled, see .venv/ops.log; DeepSpeed's tests will say why."
	@touch .venv/train $@

# pip takes another build of the same release as installed, so uninstall the old one first.
$(INDEX): $(if $(filter-out $(shell cat $(INDEX) 2>/dev/null),$(TORCH_INDEX_URL)),FORCE) | .venv/bin/pip
	@$(if $(TORCH_INDEX_URL),$(BIN)/python -m pip uninstall --quiet --yes torch,true)
	@echo "$(TORCH_INDEX_URL)" > $@

FORCE:

.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; say which one to use: make PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) lacks venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# In a new environment, so that the lock has the packages of a new user. The kind of wheel (+cpu)
# and the libraries of a GPU build are omitted, since they depend on the machine.
lock:
	fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
	&& $(PYTHON) -m venv "$$fresh" \
	&& "$$fresh/bin/pip" install --quiet 'torch==$(TORCH)' -e '.[train,deepspeed,energy,wandb,report,dev]' \
	&& "$$fresh/bin/pip" freeze --exclude-editable > "$$fresh/frozen" \
	&& { echo '# Every package of `.[train,deepspeed,energy,wandb,report,dev]`, as `make lock` resolved it. Used as constraints: `pip install -c`.'; \
	     sed -E 's/\+[a-z0-9.]+$$//' "$$fresh/frozen" | grep -Ev '^(nvidia|cuda|triton)' | LC_ALL=C sort -f; } \
	   > "$$fresh/lock" \
	&& cp "$$fresh/lock" requirements.lock \
	&& PATH="$$fresh/bin:$$PATH" docker/lock.sh

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
