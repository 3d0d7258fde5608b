"""docs/citus.md and deploy/citus: as far as they can be followed without a Citus, which no registry gives here."""

import uuid
from pathlib import Path

import yaml
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from support.app import asked
from support.pages import App, blocks

from safeagent_sa import ExecutionRequest
from safeagent_sa._dialects import NewClaim
from safeagent_sa._dialects.postgresql.by_key import ByKeyOnCitus


ROOT = Path(__file__).resolve().parents[2]
PAGE = "citus.md"


def python():
    return [block for block in blocks(PAGE) if block.language == "python"]


def test_the_revision_sends_what_citus_documents(tmp_path, new_database):
    app = App(tmp_path / "app", new_database().render_as_string(hide_password=False))
    app.run("safeagent-sa revision")
    app.run('alembic revision -m "distribute"')
    (path,) = (each for each in app.versions() if "distribute" in each.name)
    source = path.read_text()
    path.write_text(source[: source.index("def upgrade")] + python()[0].text)
    said = app.run("alembic upgrade head --sql")
    assert "SELECT create_distributed_table('execution_requests', 'scope', colocate_with => 'default');" in said
    assert "SELECT create_distributed_table('payments', 'tenant', colocate_with => 'execution_requests');" in said


def test_the_business_table_has_the_type_of_the_scope():
    """Citus co-locates columns of one type and collation only."""
    namespace = {}
    exec(compile(python()[1].text, PAGE, "exec"), namespace)
    dialect = postgresql.dialect()
    tenant, scope = (
        table.c[name].type.compile(dialect) + f" {table.c[name].type.dialect_impl(dialect).collation}"
        for table, name in ((namespace["Payment"].__table__, "tenant"), (ExecutionRequest.__table__, "scope"))
    )
    assert tenant == scope == 'VARCHAR(255) COLLATE "C" C'
    assert "BIGINT GENERATED" in str(CreateTable(namespace["Payment"].__table__).compile(dialect=dialect))


def test_the_statements_for_citus_are_as_many_as_the_page_says(postgresql_key):
    """They are valid on PostgreSQL, too."""
    sent, protocol = [], ByKeyOnCitus(ExecutionRequest.__table__)
    event.listen(postgresql_key.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    claim = NewClaim("", "order-1", "pay", "f", uuid.uuid4())
    with asked(postgresql_key.engine).begin() as connection:
        sent.clear()
        inserted = protocol.insert_or_find(connection, claim)
        assert protocol.complete(connection, claim, inserted.proof, "1") == 1
        assert len(sent) == 10, sent
    assert "ten statements beside yours for a new execution" in (ROOT / "docs" / PAGE).read_text()


def test_the_compose_file_has_a_coordinator_and_the_workers_that_it_adds():
    services = yaml.safe_load((ROOT / "deploy" / "citus" / "compose.yaml").read_text())["services"]
    assert {each["image"] for each in services.values()} == {"citusdata/citus:${CITUS_VERSION:-13.0}"}
    ports = [port for each in services.values() for port in each.get("ports", ())]
    assert ports == ["127.0.0.1:${CITUS_PORT:-5439}:5432"]  # without passwords, so on loopback alone
    workers = {name for name in services if name.startswith("worker")}
    (command,) = services["cluster"]["command"]
    assert f"for worker in {' '.join(sorted(workers))}; do" in command
    assert set(services["cluster"]["depends_on"]) == {"coordinator", *workers}
    assert f"= {len(workers)}" in services["cluster"]["healthcheck"]["test"][1]
    shell = [line.replace("$$", "$") for line in command.splitlines()]
    assert any("citus_set_coordinator_host('coordinator', 5432)" in line for line in shell)


def test_the_targets_of_the_page_exist():
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(PAGE) + blocks("engines.md"):
        for line in block.text.splitlines() if block.language == "sh" else ():
            if line.startswith("make "):
                assert f"\n{line.split()[1]}: " in makefile, line
