# Needed: make, and Python 3.11 or newer. Everything else goes into .venv.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-browser notebooks properties chaos stress soak peers bench docs lint test-matrix clean

PYTHON ?=
JOBS   ?= auto
N      ?= 1000
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
	@echo '  JOBS=4              tests to run at once        (otherwise three for two cores)'
	@echo '  ARGS="-k store"     more words for the command that is run'
	@echo '  EXAMPLES=10000      examples for each property  (otherwise 1000)'

demo:  ## run notebooks/quickstart.ipynb, restart its kernel halfway, check what survived
	@$(PREPARE) demo
	@$(RUN) notebooks/run_demo.py $(ARGS)

test:  ## run all tests, in parallel
	@$(PREPARE) test
	@sh .ci/versions
	@sh .ci/peers
	@sh .ci/axe || true
	@sh .ci/chromium || true
	@sh .ci/engines || true
	@sh .ci/tests --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-browser:  ## run the tests in JupyterLab, Notebook 7 and Chromium alone
	@$(PREPARE) test
	@sh .ci/versions
	@sh .ci/axe
	@sh .ci/chromium
	@IPYTASKPERSIST_REQUIRE_BROWSER=1 IPYTASKPERSIST_EVERY_PAIR=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal tests/browser $(ARGS)

notebooks:  ## run notebooks cell by cell in processes: what is alike, loud, silent; ARGS="--verbose FILE"
	@$(PREPARE) test
	@$(RUN) tests/helpers/notebooks_in_processes.py $(or $(ARGS),tests/runners/notebooks/*.py)

properties:  ## try each property of tests/properties with EXAMPLES examples
	@$(PREPARE) test
	@IPYTASKPERSIST_EXAMPLES=$(EXAMPLES) $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal \
		tests/properties $(ARGS)

chaos:  ## kill and stop processes in N rounds, check what must hold; SEED=… ROUND=… repeats one
	@$(PREPARE) test
	@PYTHONPATH=tests:tests/helpers $(RUN) -m faults --rounds $(N) $(if $(SEED),--seed $(SEED)) \
		$(if $(ROUND),--round $(ROUND)) $(ARGS)

stress:  ## 100 kernels, 1,000 tasks at once, 1,000 cancels, 10 GB of lines (needs 16 GB of memory, 20 GB of disk)
	@$(PREPARE) test
	@IPYTASKPERSIST_KERNELS=100 IPYTASKPERSIST_TASKS=1000 IPYTASKPERSIST_FLOOD_MB=10240 \
		IPYTASKPERSIST_KILLS=50 IPYTASKPERSIST_CANCELS=1000 $(RUN) -m pytest -rP \
		tests/runners/test_many_kernels.py tests/runners/test_many.py tests/runners/test_floods.py tests/runners/test_cancellations.py \
		tests/runners/test_durability.py tests/runners/test_survival.py tests/history/test_archives.py tests/store/test_backup.py $(ARGS)

soak:  ## a day of a busy session in ten minutes: what grows that should not?
	@$(PREPARE) test
	@IPYTASKPERSIST_SOAK_S=600 $(RUN) -m pytest -rP tests/runners/test_soak.py $(ARGS)

peers:  ## run the tests of IPython, ipykernel and joblib, with the extension loaded and without
	@$(PREPARE) test
	@sh .ci/peers
	@PYTHONPATH=tests:tests/helpers $(RUN) -m peers $(ARGS)

bench:  ## measure, side by side with what else there is
	@$(PREPARE) bench
	@$(RUN) -m benchmarks $(ARGS)

docs:  ## write docs/reference.md, the tables of docs/internals and the schema of a new store anew
	@$(PREPARE) test
	@$(RUN) docs/generate.py

lint:  ## ruff check, ruff format --check, mypy, bandit, pip-audit
	@$(PREPARE) dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m bandit --quiet --configfile pyproject.toml --recursive ipytaskpersist .ci
	@$(RUN) .ci/audit.py

test-matrix:  ## run all tests on every supported Python and ipykernel that can be had
	@$(PREPARE) dev
	@$(RUN) -m nox --session tests $(if $(ARGS),-- $(ARGS))

clean:  ## remove .venv, build and every cache
	@rm -rf .venv .nox build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
