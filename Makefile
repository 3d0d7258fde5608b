# The two commands of the README are `make demo` and `make test`; each does all of its own set-up.
# SQLALCHEMY=2.0 (or 2.1) runs a target against the newest release of that line, in an environment of its own; so does
# ALEMBIC=1.14.

PYTHON ?= python3
SQLALCHEMY ?=
ALEMBIC ?=
PINNED := $(if $(SQLALCHEMY),-sqlalchemy-$(SQLALCHEMY))$(if $(ALEMBIC),-alembic-$(ALEMBIC))
VENV := .venv$(PINNED)
BIN := $(VENV)/bin
PIN := $(if $(SQLALCHEMY),'sqlalchemy==$(SQLALCHEMY).*') $(if $(ALEMBIC),'alembic==$(ALEMBIC).*')
READY := $(VENV)/.ready
# Whole tests are stolen: a worker that dies takes one test with it, and no file.
# More processes than a small machine has cores: half of the time is spent waiting for servers and programs.
SUITE = $(BIN)/python -m pytest -n 4 --dist worksteal
BENCH_VENV := .venv-bench$(PINNED)
BENCH_BIN := $(BENCH_VENV)/bin
BENCH_READY := $(BENCH_VENV)/.ready

.PHONY: help demo test test-all check aio format changelog bench bench-full field stress pgbouncer roads mutants matrix nightly clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY)  ## the guard at work, on a SQLite file or on DATABASE_URL
	$(BIN)/safeagent-sa demo

test: $(READY)  ## the suite, with a real PostgreSQL: every promise, on the ports that can change it
	$(SUITE) $(ARGS)

test-all: $(READY)  ## the same on every port, with the coverage
	$(SUITE) --cov -m 'not stress and not pgbouncer' $(ARGS)

check: $(READY)  ## formatting, lint, layers, types, async docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tools/aio.py --check

aio: $(READY)  ## write the signatures and docstrings of the async verbs from the sync ones
	$(BIN)/python tools/aio.py

format: $(READY)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

changelog: $(READY)  ## what the files in changelog.d make together
	$(BIN)/towncrier build --draft $(ARGS)

bench: $(BENCH_READY)  ## what it costs, beside what others cost: the short form
	$(BENCH_BIN)/python -m benchmarks $(ARGS)

bench-full: $(BENCH_READY)  ## the long form, and the results page in the docs
	$(BENCH_BIN)/python -m benchmarks --full --json docs/benchmarks/results.json $(ARGS)
	$(BENCH_BIN)/python -m benchmarks.page

field: $(BENCH_READY)  ## the same races and crashes against every such library: docs/field.md
	$(BENCH_BIN)/python -m benchmarks.field --json build/field.json $(ARGS)
	$(BENCH_BIN)/python -m benchmarks.field.page build/field.json > docs/field.md

stress: $(READY)  ## the long runs
	$(BIN)/python -m pytest -m stress -o faulthandler_timeout=0 $(ARGS)

pgbouncer: $(READY)  ## the protocol through PgBouncer, which must be installed
	$(BIN)/python -m pytest -m pgbouncer $(ARGS)

roads: $(READY)  ## every way into an app's migrations, such as with ALEMBIC=1.14
	$(SUITE) tests/migrations tests/cli/test_revision.py tests/docs/test_migrations.py tests/docs/test_adopt_safeagent.py $(ARGS)

mutants: $(READY)  ## break the protocol on purpose, and see that the suite notices
	$(BIN)/python tests/mutants/run.py $(ARGS)

matrix: $(READY)  ## the promises on every pair of Python, PostgreSQL and SQLAlchemy lines
	$(BIN)/python tests/matrix/run.py $(ARGS)

nightly: $(READY)  ## mutants, stress, field and matrix, and one table of what came of them
	$(BIN)/python tests/nightly/run.py $(ARGS)

clean:  ## remove everything that was made
	rm -rf .venv* build dist *.egg-info .coverage* .*_cache .hypothesis

# The peers stay out of the environment that the tests run in. Set up again when the dependencies change. --group needs pip 25.1, which a new environment may not have.
$(BENCH_READY): GROUPS := --group dev --group bench
$(READY): GROUPS := --group dev
$(READY) $(BENCH_READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable . $(GROUPS) $(PIN)
	touch $@
