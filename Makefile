# The two commands of the README set everything up on a machine with Python >= 3.11, git and make.
PYTHON ?= python3
VENV := .venv
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
export OMP_NUM_THREADS ?= 1
# Tests on all cores, a file in one process; see tests/conftest.py.
SPREAD ?= -n auto
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
# Containers often forbid Python to keep what it has compiled: each process would compile torch and all it imports anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test nightly check rounding docs lock clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(UV) --version >/dev/null 2>&1 || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv; }
	@test -x $(VENV)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(VENV)/bin/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

# make demo ARGS="--short --json result.json"
demo: install
	$(VENV)/bin/qshift demo $(ARGS)

test: install
	$(VENV)/bin/pytest $(SPREAD) -m "not nightly" $(ARGS)

# Kills, outages, sleeping workers and 10,000 simulated histories, some hours; -s shows progress, seeds and figures.
nightly: install
	$(VENV)/bin/pytest -s -m nightly $(ARGS)

# Format, lint, strict types, import direction, quick tests.
check: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest $(SPREAD) -m "not slow and not kafka and not browser and not nightly"

# What must not depend on the order in which a processor adds, under other kernels than this machine's own.
# Kernels for AVX-512 end in an illegal instruction where there is none.
OTHER_KERNELS := $(shell grep -qs avx512 /proc/cpuinfo && echo SkylakeX || echo Zen)
rounding: install
	ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Haswell $(VENV)/bin/pytest $(SPREAD) -m rounding
	ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=$(OTHER_KERNELS) MKL_ENABLE_INSTRUCTIONS=AVX2 $(VENV)/bin/pytest $(SPREAD) -m rounding

# The pages of docs/reference that come from code; a test compares them.
docs: install
	$(VENV)/bin/python docs/generate.py

# Needed after a change of dependencies only.
lock:
	$(UV) pip compile pyproject.toml --group tools --extra demo --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .uv qshift-data
