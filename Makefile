# Needed: make, and Python 3.11 or newer. Everything else goes into .venv.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-browser properties bench docs lint test-matrix clean

PYTHON ?=
JOBS   ?= auto
ARGS   ?=
EXAMPLES ?= 1000
export PYTHON

PREPARE := sh .ci/prepare
RUN     := .venv/bin/python

help:  ## this list
	@sed -n 's/^\([a-z-]*\): *## /\1 /p' Makefile | while read -r name words; do \
		printf '  make %-12s %s\n' "$$name" "$$words"; done
	@echo
	@echo '  PYTHON=python3.13   the interpreter to use      (otherwise the first suitable one)'
	@echo '  JOBS=4              tests to run at once        (otherwise one for each core)'
	@echo '  ARGS="-k store"     more words for the command that is run'
	@echo '  EXAMPLES=10000      examples for each property  (otherwise 1000)'

demo:  ## run notebooks/quickstart.ipynb, restart its kernel halfway, check what survived
	@$(PREPARE) demo
	@$(RUN) notebooks/run_demo.py $(ARGS)

test:  ## run all tests, in parallel
	@$(PREPARE) test
	@sh .ci/ipykernels
	@$(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-browser:  ## run the tests in JupyterLab, Notebook 7 and Chromium alone
	@$(PREPARE) test
	@sh .ci/ipykernels
	@sh .ci/chromium
	@IPYTASKPERSIST_REQUIRE_BROWSER=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal tests/browser $(ARGS)

properties:  ## try each property of tests/properties with EXAMPLES examples
	@$(PREPARE) test
	@IPYTASKPERSIST_EXAMPLES=$(EXAMPLES) $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal \
		tests/properties $(ARGS)

bench:  ## measure, side by side with what else there is
	@$(PREPARE) bench
	@$(RUN) -m benchmarks $(ARGS)

docs:  ## write docs/reference.md anew, from the definitions in the code
	@$(PREPARE) test
	@$(RUN) docs/generate.py

lint:  ## ruff check, ruff format --check, mypy
	@$(PREPARE) dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

test-matrix:  ## run all tests on every supported Python and ipykernel that can be had
	@$(PREPARE) dev
	@$(RUN) -m nox --session tests $(if $(ARGS),-- $(ARGS))

clean:  ## remove .venv, build and every cache
	@rm -rf .venv .nox build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
