# make quickstart   from public-domain songs to a song that a model sings, pretrained on this machine
# make test         all tests
# make lint         mistakes and form of the code (ruff)
# make soak         kills one process of a run at 20 moments, and compares every loss with an undisturbed run's
# make environment  the virtual environment alone (all of the above make it where it is missing)

# The first that runs: pyenv has a command of every name that fails where the version isn't chosen.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do $$python -c '' 2> /dev/null && command -v $$python && break; done)
VENV := .venv
# A further index for torch: README says what for.
TORCH_INDEX ?=
READY := $(VENV)/.ready

.PHONY: quickstart test lint soak environment clean

quickstart: $(READY)
	$(VENV)/bin/python tools/quickstart.py

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

soak: $(READY)
	SOAK=20 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/training/test_not_killed.py

environment: $(READY)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "megatron-music needs Python 3.11 to 3.13, this is %d.%d; run: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_INDEX:%=--extra-index-url %) torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs/quickstart
