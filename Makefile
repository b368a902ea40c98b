# The two commands: `make demo` and `make test`. Each does all of the set-up the first time
# (a virtual environment in .venv, about 6 GB) and none of it again until pyproject.toml or constraints.txt changes.

VENV   := .venv
STAMP  := $(VENV)/.installed
RUN    := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: demo test test-slow bench gpu chaos lint types cluster-check setup clean help

demo: $(STAMP)
	$(RUN)/python jobs/demo.py

test: $(STAMP)
	$(RUN)/python -m pytest -m "not slow and not chaos" $(PYTEST_ARGS)

# What does not fit into a quarter of an hour; its figures are recorded in docs/.
test-slow: $(STAMP)
	$(RUN)/python -m pytest -m slow --timeout 1800 $(PYTEST_ARGS)

# The project beside its peers on the same work; PICTURES is a folder of JPEGs or PNGs. Half an hour and more, on a quiet machine.
# Daft is installed without its dependencies: it asks for an older pyarrow than the tests ran with.
PICTURES ?= $(SEGMENTATION_DATA)/camvid/train
bench: $(STAMP)
	$(RUN)/python -c 'import daft' 2>/dev/null || $(RUN)/python -m pip install --quiet --no-deps daft==0.7.26
	$(RUN)/python benchmarks/networks.py
	$(RUN)/python benchmarks/engines.py --pictures $(PICTURES)
	$(RUN)/python benchmarks/memory.py
	$(RUN)/python benchmarks/throughput.py --pictures $(PICTURES) --output runs/throughput

# What is to be known of a GPU, in under eight minutes; writes runs/gpu/gpu.json, part by part, and prints the tables.
gpu: $(STAMP)
	$(RUN)/python benchmarks/gpu.py

# Kills, faults and full disks; writes its figures into docs/reliability.md. Parts: PYTEST_ARGS="-k lease".
chaos: $(STAMP)
	SEGMENTATION_RECORD=1 $(RUN)/python -m pytest tests/chaos --timeout 1200 $(PYTEST_ARGS)

lint: $(STAMP)
	$(RUN)/ruff check .

types: $(STAMP)
	$(RUN)/mypy

# Ray's own validator and our assertions on what cluster.yaml means; starts nothing.
cluster-check: $(STAMP)
	$(RUN)/python -m pytest tests/16_whole/test_cluster.py

setup: $(STAMP)

# A stamp, written last: an install that was broken off is started again, a finished one is not.
# PYTHON=... chooses the interpreter; by default the first of these that is >= 3.11 and can make an environment.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(RUN)/python ] || ! $(RUN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python >= 3.11 with venv and pip on PATH (on Debian: apt-get install python3-venv;" \
	         "or name one: make PYTHON=/path/to/python3.11 ...)" >&2; exit 2; \
	  fi; \
	  echo "making $(VENV) with $$found"; $$found -m venv $(VENV) || exit 1; \
	fi
	@echo "installing into $(VENV): about 2 minutes and 6 GB, once"
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@echo "make demo | test | test-slow | bench | gpu | chaos | lint | types | cluster-check | setup | clean"
