# Needs Python 3.11 or later with venv, make and git. Each target sets up what it needs and is quick when that exists.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all fuzz clean
.DEFAULT_GOAL := demo

# The extras (published weights that benchmarks and one test begin with) may be missing: nothing else needs them.
# torchvision 0.29 brings a torch that fits it; the floors in requirements.txt are lower
$(VENV)/ready: requirements.txt requirements-extras.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt "torchvision>=0.29" pytest pytest-xdist hypothesis
	-$(RUN) -m pip install --quiet --no-deps -r requirements-extras.txt
	touch $@

demo: $(VENV)/ready
	sh sample/demo.sh $(RUN)

test: $(VENV)/ready
	$(RUN) -m pytest -q -n auto --maxprocesses 4 -m "not slow"

test-all: $(VENV)/ready
	$(RUN) -m pytest -q

fuzz: $(VENV)/ready
	$(RUN) tests/fuzz.py --mutants 500

clean:
	rm -rf demo
