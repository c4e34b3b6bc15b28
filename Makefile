# `make run` measures the quick suite and writes its report; `make test` runs the tests. Both set up `.venv` first
# and use it again as long as the pins are unchanged.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed-$(shell cat envs/requirements.txt pyproject.toml | cksum | tr ' ' -)
export TOKENIZERS_PARALLELISM := false
# Two workers of one thread each take half the time of one worker of two.
SPREAD := --numprocesses 2 --dist worksteal

.PHONY: run test test-all lint install oracles gpu-check clean
run: install
	. $(VENV)/bin/activate && snakemake --cores all
	@echo "report: results/quick/report/index.html"

test: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not slow" $(SPREAD)

test-all: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(SPREAD)

lint: install
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/snakefmt --check Snakefile workflow
	. $(VENV)/bin/activate && snakemake --lint

install: $(STAMP)

# The torch of the index may be a CPU or a CUDA build; installing it first keeps the resolver from replacing it.
$(STAMP): envs/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Parsimony needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' envs/requirements.txt)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	rm -f $(VENV)/installed-*
	touch $@

# Other implementations that tests compare with where they are installed (half a minute; needs a C++ compiler).
oracles: install
	envs/oracles.sh $(VENV)

# Compiles the kernels, checks them on this machine's GPU and times them; writes results/published/gpu. Options, such as
# GPU_CHECK=--tune, go to `parsimony gpu-check`.
gpu-check: install
	. $(VENV)/bin/activate && snakemake --cores 1 kernels
	$(VENV)/bin/python -m pytest tests/gpu
	$(VENV)/bin/parsimony gpu-check $(GPU_CHECK)

clean:
	rm -rf $(VENV) .snakemake resources results/quick
