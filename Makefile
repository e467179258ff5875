# make quickstart   from public-domain songs to a song that a model sings, pretrained on this machine
# make test         all tests
# make soak         kills one process of a run at 20 moments, and compares every loss with an undisturbed run's
# make environment  the virtual environment alone (both of the above make it where it is missing)

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready

.PHONY: quickstart test soak environment clean

quickstart: $(READY)
	$(VENV)/bin/python tools/quickstart.py

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

soak: $(READY)
	SOAK=20 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/training/test_not_killed.py

environment: $(READY)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in [(3, 11), (3, 12)] else "megatron-music needs Python 3.11 or 3.12, this is %d.%d; run: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs/quickstart
