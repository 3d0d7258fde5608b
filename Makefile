# The README's two commands are `make demo` and `make test`. Each target sets up everything that it needs.
# SQLALCHEMY=2.0 (or 2.1) runs a target with the newest release of that line, in a separate environment; ALEMBIC=1.14 does the
# same for Alembic.

PYTHON ?= python3
SQLALCHEMY ?=
ALEMBIC ?=
PINNED := $(if $(SQLALCHEMY),-sqlalchemy-$(SQLALCHEMY))$(if $(ALEMBIC),-alembic-$(ALEMBIC))
VENV := .venv$(PINNED)
BIN := $(VENV)/bin
PIN := $(if $(SQLALCHEMY),'sqlalchemy==$(SQLALCHEMY).*') $(if $(ALEMBIC),'alembic==$(ALEMBIC).*')
READY := $(VENV)/.ready
# Compiled code is kept, whatever the shell says: the suite starts hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=
# Workers take single tests, so that a worker that dies loses one test and no file.
# More processes than a small machine has cores, since tests wait for servers and programs.
SUITE = $(BIN)/python -m pytest -n 4 --dist worksteal
EVERYWHERE = not stress and not pgbouncer and not failover and not agents and not recipes and not queues and not http and not browser and not site
BENCH_VENV := .venv-bench$(PINNED)
BENCH_BIN := $(BENCH_VENV)/bin
BENCH_READY := $(BENCH_VENV)/.ready
AGENTS_VENV := .venv-agents$(PINNED)
AGENTS_BIN := $(AGENTS_VENV)/bin
AGENTS_READY := $(AGENTS_VENV)/.ready
AGENTS_MODULES := _langchain _mcp_results fastmcp langgraph mcp openai_agents pydantic_ai
HTTP_READY := .venv-http/.ready
QUEUES_READY := .venv-queues/.ready
ARQ_READY := .venv-arq/.ready
OLDEST_READY := .venv-fastapi-oldest/.ready
DOCS_READY := .venv-docs/.ready
TRACERS_READY := .venv-tracers/.ready
SITE := build/docs

.PHONY: help demo demo-agents dashboard test test-all coverage engine citus check hosting words aio format changelog bench bench-full bench-instructions bench-large field stress pgbouncer failover roads frameworks start test-agents test-recipes test-http test-queues test-tracers test-browser screenshots docs test-docs diagrams picture mutants matrix release-check release-extras nightly clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(READY)  ## show retries, races and crashes, on a SQLite file or DATABASE_URL
	$(BIN)/safeagent-sa demo

demo-agents: $(AGENTS_READY)  ## show the repeated tool calls of an agent, on two real MCP servers
	$(AGENTS_BIN)/safeagent-sa demo agents

dashboard: $(READY)  ## show the dashboard over a shop that is at work: http://127.0.0.1:8090, or ARGS=port
	$(BIN)/python tests/browser/show.py $(ARGS)

test: $(READY)  ## the suite with a real PostgreSQL: each test on the ports that can change its outcome
	$(SUITE) $(ARGS)

test-all: $(READY)  ## the suite on every port
	$(SUITE) -m '$(EVERYWHERE)' $(ARGS)

coverage: $(READY)  ## the same, and count the lines that it runs
	$(SUITE) --cov -m '$(EVERYWHERE)' $(ARGS)

engine: $(READY)  ## ask any engine for every promise, and print a verdict: URL=postgresql+psycopg://..., an empty database
	@test -n '$(URL)' || { echo "make engine URL=postgresql+psycopg://user:password@host/empty_database"; exit 2; }
	$(BIN)/python tests/engine/run.py '$(URL)' $(ARGS)

citus: $(READY)  ## the same on a Citus, such as that of deploy/citus, with the table distributed by scope
	@test -n '$(URL)' || { echo "make citus URL=postgresql+psycopg://user:password@coordinator/empty_database; deploy/citus has one"; exit 2; }
	$(BIN)/python tests/engine/run.py '$(URL)' --expect Citus $(ARGS)

check: $(READY)  ## formatting, lint, layers, types, async docstrings, words, files for the host
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tools/aio.py --check
	$(BIN)/python tools/words.py
	$(MAKE) --no-print-directory hosting

hosting: $(READY)  ## the files for the host, offline: workflows, forms, hooks, citation
	$(BIN)/zizmor --offline --no-progress --quiet .github .pre-commit-config.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/citus/compose.yaml

aio: $(READY)  ## write the signatures and docstrings of the async verbs from the sync ones
	$(BIN)/python tools/aio.py

words: $(READY)  ## find the words that the style page rules out
	$(BIN)/python tools/words.py $(ARGS)

format: $(READY)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

changelog: $(READY)  ## show the changelog that the files in changelog.d make
	$(BIN)/towncrier build --draft $(ARGS)

bench: $(BENCH_READY)  ## measure what the guard and other libraries cost, in about three minutes
	$(BENCH_BIN)/python -m benchmarks $(ARGS)

bench-full: $(BENCH_READY)  ## the same with longer turns, and write docs/benchmarks.md
	$(BENCH_BIN)/python -m benchmarks --full --json docs/benchmarks/results.json $(ARGS)
	$(BENCH_BIN)/python -m benchmarks.page

bench-instructions: $(READY)  ## count the client's instructions under valgrind, and fail beyond the gates
	$(BIN)/python -m benchmarks --only instructions --gate --json build/instructions.json $(ARGS)

bench-large: $(READY)  ## measure tables of 10^4, 10^6 and 10^7 receipts, in about half an hour and 15 GB
	$(BIN)/python -m benchmarks.large --json docs/benchmarks/large.json $(ARGS)

field: $(BENCH_READY)  ## compare with other libraries under races, crashes and agents, and write both pages
	$(BENCH_BIN)/python -m benchmarks.field --json build/field.json $(ARGS)
	$(BENCH_BIN)/python -m benchmarks.field.page build/field.json > docs/field.md
	$(BENCH_BIN)/python -m benchmarks.field.agents --page docs/agents/compared.md

test-agents: $(AGENTS_READY)  ## tool calls of agents through the frameworks, with real servers
	$(AGENTS_BIN)/mypy safeagent_sa/integrations/agents $(AGENTS_MODULES:%=safeagent_sa/integrations/%.py)
	$(AGENTS_BIN)/python -m pytest -n 2 --dist worksteal -m agents -W default tests/agents $(ARGS)

test-recipes: .venv-recipes/.ready .venv-crewai/.ready  ## the recipes for frameworks of agents without a module
	.venv-recipes/bin/python -m pytest -m recipes -W default tests/recipes -k 'not crewai' $(ARGS)
	.venv-crewai/bin/python -m pytest -m recipes -W default tests/recipes -k crewai $(ARGS)

stress: $(READY)  ## the long runs
	$(BIN)/python -m pytest -m stress $(ARGS)

pgbouncer: $(READY)  ## the protocol through PgBouncer, which must be installed
	$(BIN)/python -m pytest -m pgbouncer $(ARGS)

failover: $(READY)  ## kill primaries under load and promote standbys; PostgreSQL's programs must be here
	$(BIN)/python -m pytest -m failover tests/failover $(ARGS)

test-http: $(HTTP_READY) $(OLDEST_READY)  ## HTTP adapters and webhooks: real servers, other frameworks, the oldest FastAPI
	.venv-http/bin/python -m pytest -m http tests/http $(ARGS)
	.venv-fastapi-oldest/bin/python -m pytest tests/integrations/test_fastapi.py tests/docs/test_fastapi.py $(ARGS)

# arq needs an older client of Redis than the other queues.
test-queues: $(QUEUES_READY) $(ARQ_READY)  ## real queues whose workers and brokers are killed; the brokers must be installed
	SAFEAGENT_ARQ_PYTHON=$(CURDIR)/.venv-arq/bin/python .venv-queues/bin/python -m pytest -m queues tests/queues $(ARGS)

test-tracers: $(TRACERS_READY)  ## what OpenTelemetry, Sentry, Datadog and Elastic show of the guard's statements
	.venv-tracers/bin/python tests/tracers/run.py $(ARGS)

test-browser: $(READY)  ## the dashboard in a real Chromium, which must be installed
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

screenshots: $(READY)  ## the same, and take the pictures of docs/operate.md
	SAFEAGENT_SCREENSHOTS=docs/operate $(BIN)/python -m pytest -m browser tests/browser $(ARGS)

docs: $(DOCS_READY)  ## build the site of the documentation into build/docs; needs no network
	rm -rf $(SITE)
	.venv-docs/bin/python -m sphinx --fail-on-warning --keep-going -q -b html docs $(SITE)
	@echo "$(SITE)/index.html"

test-docs: docs $(READY)  ## build the site and follow its links; look at every page in Chromium, which must be installed
	$(BIN)/python -m pytest -m site tests/site $(ARGS)

picture: $(READY)  ## draw the terminal of the demo: docs/demo.svg
	$(BIN)/python tools/picture.py

# Mermaid's own program, with the Chromium that is here; needs npm.
diagrams:  ## draw docs/diagrams/*.mmd as SVG
	cd docs/diagrams && PUPPETEER_SKIP_DOWNLOAD=1 PUPPETEER_EXECUTABLE_PATH=$$(command -v chromium) sh -euc ' \
	  for source in *.mmd; do npx --yes -p @mermaid-js/mermaid-cli mmdc -q -b white -c style.json -p browser.json \
	    -i $$source -o $${source%.mmd}.svg; done'

roads: $(READY)  ## every migration setup, such as with ALEMBIC=1.14
	$(SUITE) tests/migrations tests/cli/test_revision.py tests/docs/test_migrations.py tests/docs/test_adopt_safeagent.py $(ARGS)

frameworks: $(READY)  ## follow the pages with a whole app in new environments; ARGS=flask for one
	PYTHONPATH=tests $(BIN)/python tests/frameworks/run.py $(ARGS)

start: $(READY)  ## follow the first three pages of the documentation in new environments
	PYTHONPATH=tests $(BIN)/python tests/frameworks/run.py --first

mutants: $(READY)  ## break the promises, one at a time, and check that a test fails
	$(BIN)/python tests/mutants/run.py $(ARGS)

matrix: $(READY)  ## the promises on the supported versions of Python, PostgreSQL and SQLAlchemy
	$(BIN)/python tests/matrix/run.py $(ARGS)

release-check: $(READY)  ## build sdist and wheel, and check both as a user gets them
	$(BIN)/python tools/release_check.py $(ARGS)

release-extras: $(READY)  ## install every extra of the wheel alone, or ARGS=flask, and import what it is for
	$(BIN)/python tools/release_check.py --extras $(ARGS)

nightly: $(READY)  ## everything that takes too long for each change, with one table of results
	$(BIN)/python tests/nightly/run.py $(ARGS)

clean:  ## remove everything that these targets create
	rm -rf .venv* build dist *.egg-info .coverage* .*_cache .hypothesis

# The other libraries and the frameworks of agents are not in the environment of the tests. All are set up again when the
# dependencies change.
# --group needs pip 25.1, which a new environment may not have.
$(BENCH_READY): GROUPS := --group dev --group bench
$(AGENTS_READY): GROUPS := --group agents
.venv-recipes/.ready: GROUPS := --group recipes
.venv-crewai/.ready: GROUPS := --group crewai
$(READY): GROUPS := --group dev
$(HTTP_READY): GROUPS := --group http
$(QUEUES_READY): GROUPS := --group queues
$(ARQ_READY): GROUPS := --group arq
$(OLDEST_READY): GROUPS := --group fastapi-oldest
$(DOCS_READY): GROUPS := --group docs
$(TRACERS_READY): GROUPS := --group tracers
$(READY) $(BENCH_READY) $(AGENTS_READY) $(HTTP_READY) $(OLDEST_READY) $(QUEUES_READY) $(ARQ_READY) $(DOCS_READY) $(TRACERS_READY) .venv-recipes/.ready .venv-crewai/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable . $(GROUPS) $(PIN)
	touch $@
