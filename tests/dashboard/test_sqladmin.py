"""The table in SQLAdmin: nothing can be changed, nothing personal is shown, and no page counts the table."""

import pytest
from sqladmin import Admin
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase
from starlette.applications import Starlette
from support import stage
from support.app import deliver
from support.visits import Visits

from safeagent_sa import ExecutionGuard, make_model
from safeagent_sa.integrations.sqladmin import requests_view


def admin_of(engine, **attributes):
    app = Starlette()
    Admin(app, engine).add_view(requests_view(ExecutionGuard(), **attributes))
    return app


@pytest.mark.parametrize("kind", ["postgresql", "sqlite", "asyncpg"])
def test_it_shows_the_requests_and_nothing_that_is_personal(request, kind):
    port = request.getfixturevalue("sqlite" if kind == "sqlite" else "postgresql")
    deliver(port, "order-1;a", ExecutionGuard(scope="acme"))
    deliver(port, stage.HOSTILE[:200])
    with port.engine.begin() as connection:
        token = str(connection.scalar(text("SELECT CAST(token AS text) FROM execution_requests WHERE scope = 'acme'")))
        if kind != "sqlite":
            connection.execute(text("ANALYZE execution_requests"))
    engine = port.engine
    if kind == "asyncpg":
        engine = create_async_engine(port.url.replace("+psycopg:", "+asyncpg:"))
    with Visits(admin_of(engine), "/admin") as visits:
        page = visits.get("/execution-request/list")
        assert page.status_code == 200
        assert "order-1;a" in page.text
        assert "<script>document" not in page.text
        details = visits.get("/execution-request/details/acme;order-1%5C;a")
        assert details.status_code == 200
        assert "pay" in details.text
        for shown in (page.text, details.text):
            assert "rcpt_" not in shown
            assert token.replace("-", "") not in shown.replace("-", "")
        for path in ("create", "edit/acme;order-1%5C;a", "export/csv"):
            assert visits.get(f"/execution-request/{path}").status_code == 403, path
        deleted = visits.run(visits._send("DELETE", "/execution-request/delete?pks=acme;order-1%5C;a"))
        assert deleted.status_code == 403
        if kind == "asyncpg":
            visits.run(engine.dispose())
    assert ("order-1;a", "completed") in port.requests()


def test_no_page_counts_or_sorts_the_table(postgresql):
    deliver(postgresql, "order-1")
    with postgresql.engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO execution_requests (scope, request_id, action, fingerprint, status, token, result)
            SELECT '', 'n-' || n, 'pay', 'f', 'completed', gen_random_uuid(), '1' FROM generate_series(1, 5000) AS n""")
        )
        connection.execute(text("ANALYZE execution_requests"))
    sent = []

    def note(_connection, _cursor, statement, values, *_):
        sent.append((statement, values))

    event.listen(postgresql.engine, "before_cursor_execute", note)
    with Visits(admin_of(postgresql.engine), "/admin") as visits:
        assert visits.get("/execution-request/list?sortBy=created_at").status_code in (200, 400)  # ignored, or refused
        page = visits.get("/execution-request/list")
        assert page.status_code == 200
        assert "5001" in page.text  # of pg_class
    event.remove(postgresql.engine, "before_cursor_execute", note)
    reads = [(statement, values) for statement, values in sent if "execution_requests" in statement]
    assert reads
    assert not any("count(" in statement.lower() for statement, _ in sent)
    with postgresql.engine.connect() as connection:
        for statement, values in reads:
            plan = str(connection.exec_driver_sql(f"EXPLAIN {statement}", values).all())
            assert "Index Scan using pk_execution_requests" in plan, plan
            assert "Sort" not in plan.replace("Incremental Sort", ""), plan


def test_a_view_that_could_change_the_table_is_refused():
    for attribute in ("can_create", "can_edit", "can_delete", "can_import"):
        with pytest.raises(ValueError, match=f"read-only.*{attribute}"):
            requests_view(ExecutionGuard(), **{attribute: True})


def test_a_model_of_the_app_and_another_name():
    class Base(DeclarativeBase):
        pass

    model = make_model(Base, tablename="trade_requests", schema="trading")
    view = requests_view(ExecutionGuard(model=model), name="Trade")
    assert (view.model, view.name) == (model, "Trade")
