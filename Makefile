# The two commands of the README are `make demo` and `make test`; each does all of its own set-up.
# SQLALCHEMY=2.0 (or 2.1) runs a target against the newest release of that line, in an environment of its own; so does
# ALEMBIC=1.14.

PYTHON ?= python3
SQLALCHEMY ?=
ALEMBIC ?=
VENV := .venv$(if $(SQLALCHEMY),-sqlalchemy-$(SQLALCHEMY))$(if $(ALEMBIC),-alembic-$(ALEMBIC))
BIN := $(VENV)/bin
PIN := $(if $(SQLALCHEMY),'sqlalchemy==$(SQLALCHEMY).*') $(if $(ALEMBIC),'alembic==$(ALEMBIC).*')
READY := $(VENV)/.ready

.PHONY: help demo test check format bench stress pgbouncer roads mutants clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

demo: $(READY)  ## the guard at work, on a SQLite file or on DATABASE_URL
	$(BIN)/safeagent-sa demo

test: $(READY)  ## the whole suite, with a real PostgreSQL
	$(BIN)/python -m pytest --cov -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(READY)  ## formatting, lint, layers, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## what it costs: DATABASE_URL=postgresql+psycopg://... make bench
	$(BIN)/python benchmarks/overhead.py --url "$(DATABASE_URL)" $(ARGS)

stress: $(READY)  ## the long runs
	$(BIN)/python -m pytest -m stress $(ARGS)

pgbouncer: $(READY)  ## the protocol through PgBouncer, which must be installed
	$(BIN)/python -m pytest -m pgbouncer $(ARGS)

roads: $(READY)  ## every way into an app's migrations, such as with ALEMBIC=1.14
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/migrations tests/cli/test_revision.py tests/docs/test_migrations.py tests/docs/test_adopt_safeagent.py $(ARGS)

mutants: $(READY)  ## break the protocol on purpose, and see that the suite notices
	$(BIN)/python tests/mutants/run.py

clean:  ## remove everything that was made
	rm -rf .venv* build dist *.egg-info .coverage* .*_cache .hypothesis

# Set up again when the dependencies change. --group needs pip 25.1, which a new environment may not have.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev $(PIN)
	touch $@
