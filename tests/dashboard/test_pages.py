"""Each page of the dashboard, as HTML and as JSON, on both databases, below any prefix."""

import json
import re
import threading
import warnings

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import Mount
from support import stage
from support.app import deliver
from support.patience import PATIENCE
from support.visits import Visits

from safeagent_sa import ExecutionGuard
from safeagent_sa import sqlite as sqlite_setup
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.dashboard import Dashboard
from safeagent_sa.dashboard._database import Part
from safeagent_sa.events import Recorder


PAGES = [
    "/",
    "/in-doubt",
    "/outbox",
    "/now",
    "/requests",
    "/requests?q=order",
    "/request?scope=acme&id=order%3A4820",
    "/health",
]


def mounted(dashboard, prefix="/ops"):
    return Starlette(routes=[Mount(prefix, dashboard)])


@pytest.fixture
def filled(request, port_name):
    port = request.getfixturevalue(port_name)
    if port.name == "postgresql":
        with port.engine.begin() as connection:  # without the pages of what earlier tests have deleted
            connection.execute(text("TRUNCATE execution_requests"))
    stage.fill(port.engine, 500)
    return port


def on_each_database(test):
    return pytest.mark.parametrize("port_name", ["postgresql", "sqlite"])(test)


@on_each_database
def test_every_page_shows_what_is_stored(filled):
    with Visits(mounted(Dashboard(ExecutionGuard(), filled.engine, may_look=lambda _: True))) as visits:
        for path in PAGES:
            answer = visits.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
            assert "could not be read" not in answer.text, path
        found = {path: visits.json(path) for path in PAGES}
        assert {path: page["failed"] for path, page in found.items() if page["failed"]} == {}
        overview = found["/"]["parts"]
        assert {row["request_id"] for row in overview["in_doubt"]["rows"]} == {
            "order:48213:payout",
            "order:48377:payout",
            stage.HOSTILE,
        }
        assert [round(row["age"] / 60) for row in overview["in_doubt"]["rows"][:2]] == [180, 12]
        assert len(overview["dead"]["rows"]) == 2
        assert "550 mailbox unavailable" in overview["dead"]["rows"][0]["error"]
        assert len(overview["due"]["rows"]) == 4
        assert 9 * 60 <= max(row["age"] for row in overview["due"]["rows"]) < 20 * 60
        assert overview["ages"]["is_exact"]
        assert overview["ages"]["rows"] == len(filled.requests())
        assert {row["request_id"][:5] for row in found["/requests?q=order"]["parts"]["found"]["rows"]} == {"order"}
        steps = found["/request?scope=acme&id=order%3A4820"]["parts"]["request"]["steps"]
        assert [step["kind"] for step in steps] == ["claimed", "completed"]
        assert {finding["code"] for finding in found["/health"]["parts"]["findings"]} >= {
            "schema",
            "in-doubt",
            "outbox",
        }
        assert not any("token" in str(page) or "ada@example.org" in str(page) for page in found.values())


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg", "aiosqlite"])
def test_async_engines_show_the_same(request, driver):
    port = request.getfixturevalue("sqlite" if driver == "aiosqlite" else "postgresql")
    deliver(port, "order-1", ExecutionGuard(scope="acme"))
    url = make_url(port.url).set(drivername=f"{'sqlite' if driver == 'aiosqlite' else 'postgresql'}+{driver}")
    engine = (create_engine if driver == "psycopg" else create_async_engine)(url)
    if driver == "aiosqlite":
        sqlite_setup.configure(engine)
    guard = ExecutionGuard() if driver == "psycopg" else AsyncExecutionGuard()
    dashboard = Dashboard(guard, engine, may_look=lambda _: True, may_resolve=lambda _: "alice")
    with Visits(mounted(dashboard)) as visits:
        for path in PAGES[:6] + PAGES[7:]:
            page = visits.json(path)
            assert page["failed"] == {}, (path, page["failed"])
        assert visits.json("/requests?q=order-1")["parts"]["found"]["rows"][0]["scope"] == "acme"
        form = {"scope": "acme", "id": "order-1", "answer": "succeeded", "evidence": "seen"}
        assert "is not in doubt" in visits.post("/resolve", form).text
        visits.run(engine.dispose()) if driver != "psycopg" else engine.dispose()


_ENDLESS = """
INSERT INTO execution_requests (scope, request_id, action, fingerprint, token, status, attempt, payload, lease_expires_at,
    created_at, effect_started_at)
VALUES ('acme', 'waits', 'a', 'none', gen_random_uuid(), 'leased', 0, '{}', 'infinity', now(), NULL),
    ('acme', 'runs', 'a', 'none', gen_random_uuid(), 'leased', 1, NULL, 'infinity', '-infinity', '-infinity'),
    ('acme', 'doubt', 'a', 'none', gen_random_uuid(), 'in_doubt', 1, NULL, 'infinity', '0044-03-15 BC', 'infinity')
"""


def _strictly(text):
    """Read JSON as a browser does, which knows no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON: {text}"))


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_moments_without_an_end_are_shown_and_spoil_no_page(postgresql, driver):
    with postgresql.engine.begin() as connection:
        connection.execute(text(_ENDLESS))
    url = make_url(postgresql.url).set(drivername=f"postgresql+{driver}")
    engine = (create_async_engine if driver == "asyncpg" else create_engine)(url)
    guard = AsyncExecutionGuard() if driver == "asyncpg" else ExecutionGuard()
    with Visits(mounted(Dashboard(guard, engine, may_look=lambda _: True))) as visits:
        for path in [
            *PAGES[:6],
            "/requests?q=wai",
            *(f"/request?scope=acme&id={each}" for each in ("waits", "runs", "doubt")),
        ]:
            assert visits.get(path).status_code == 200
            page = _strictly(visits.get(path, headers={"Accept": "application/json"}).text)
            assert page["failed"] == {}, (path, page["failed"])
        steps = visits.json("/request?scope=acme&id=waits")["parts"]["request"]["steps"]
        assert [step["what"] for step in steps][-1] == "its lease has no end"
        found = visits.json("/requests?q=wai")["parts"]["found"]["rows"][0]
        assert found["lease_expires_at"].startswith("9999-12-30")
        visits.run(engine.dispose()) if driver == "asyncpg" else engine.dispose()


def _assets(page):
    return re.findall(r'(?:href|src)="([^"#]*static[^"]*)"', page.text)


def apps():
    def dashboard_of():
        return Dashboard(ExecutionGuard(), _engine[0], may_look=lambda _: True)

    def fastapi():
        app = FastAPI()
        app.mount("/ops", dashboard_of())
        return app, "/ops"

    def nested():
        inner = FastAPI()
        inner.mount("/ops", dashboard_of())
        outer = FastAPI()
        outer.mount("/admin", inner)
        return outer, "/admin/ops"

    def litestar():
        with warnings.catch_warnings(action="ignore"):  # advanced-alchemy uses what SQLAlchemy 2.1 deprecates
            from litestar import Litestar
            from litestar.handlers import asgi

        return Litestar([asgi("/ops", is_mount=True, copy_scope=True)(dashboard_of())]), "/ops"

    def itself():
        return dashboard_of(), ""

    return [fastapi, nested, litestar, itself]


_engine = []


@pytest.mark.parametrize("app", apps(), ids=lambda app: app.__name__)
def test_links_and_assets_work_below_any_prefix(sqlite, app):
    deliver(sqlite, "order-1")
    _engine[:] = [sqlite.engine]
    app, prefix = app()
    with Visits(app, prefix) as visits:
        for path in ("/", "/requests?q=order"):
            page = visits.get(path)
            assert page.status_code == 200, page.text
            links = set(re.findall(r'(?:href|src|action)="([^"#]*)"', page.text))
            assert len(links) >= 9
            for link in links:
                target = page.url.join(link.replace("&amp;", "&"))
                assert target.path.startswith(prefix + "/"), link
                found = visits.get(target.raw_path.decode().removeprefix(prefix))
                assert found.status_code in (200, 303), (link, found.status_code)
        if prefix:
            entered = visits.get("")
            assert entered.status_code == 200 or entered.url.join(entered.headers["location"]).path == prefix + "/"
        slashed = visits.get("/outbox/")
        assert (
            visits.get(slashed.url.join(_assets(slashed)[0]).raw_path.decode().removeprefix(prefix)).status_code == 200
        )
        missing = visits.get("/no/such/page")
        assert missing.status_code == 404
        assert "There is no such page" in missing.text
        for link in _assets(missing):
            assert visits.get(missing.url.join(link).raw_path.decode().removeprefix(prefix)).status_code == 200


def test_an_exact_id_leads_to_its_page_and_an_open_claim_is_found_by_its_lock(postgresql):
    deliver(postgresql, "order-1", ExecutionGuard(scope="acme"))
    with Visits(mounted(Dashboard(ExecutionGuard(), postgresql.engine, may_look=lambda _: True))) as visits:
        found = visits.get("/requests?q=order-1")
        assert (found.status_code, found.headers["location"]) == (303, "request?scope=acme&id=order-1")
        assert visits.get("/request?scope=acme&id=order-9").status_code == 404
        with postgresql.sessions() as session:
            with ExecutionGuard(scope="acme").claim(session, "order-9", action="pay") as execution:
                execution.complete(1)
            page = visits.get("/request?scope=acme&id=order-9")
            assert "is being executed now" in page.text
            session.rollback()


def test_holders_and_waiters_are_shown_by_name(postgresql):
    recorder = Recorder()
    dashboard = Dashboard(ExecutionGuard(), postgresql.engine, recorder=recorder, may_look=lambda _: True)
    with stage.live(postgresql.engine, recorder), Visits(mounted(dashboard)) as visits:
        over = threading.Event()
        for _ in range(200):  # until the server has all three waiters
            groups = visits.json("/now")["parts"]["locks"]["groups"]
            if len(groups[0]["waiters"]) == 3:
                break
            over.wait(PATIENCE / 200)
        assert {(group["scope"], group["request_id"]) for group in groups} == {
            ("acme", "payment:77120"),
            ("acme", "webhook:evt_1Q"),
        }
        assert [len(group["waiters"]) for group in groups] == [3, 0]
        assert all(group["holder"]["state"] == "idle in transaction" for group in groups)
        assert all(session["query"] is None for group in groups for session in (group["holder"], *group["waiters"]))


def counting(engine):
    sent = []

    def note(_connection, _cursor, statement, *_):
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    return sent


def test_open_tabs_share_answers_and_one_connection(postgresql):
    engine = create_engine(postgresql.url)
    sent, most = counting(engine), []
    event.listen(engine, "checkout", lambda *_: most.append(engine.pool.checkedout()))
    with Visits(mounted(Dashboard(ExecutionGuard(), engine, may_look=lambda _: True))) as visits:
        visits.at_once(["/"])
        alone = len(sent)
    engine.dispose()

    engine = create_engine(postgresql.url)
    sent, most = counting(engine), []
    event.listen(engine, "checkout", lambda *_: most.append(engine.pool.checkedout()))
    with Visits(mounted(Dashboard(ExecutionGuard(), engine, may_look=lambda _: True))) as visits:
        assert {page.status_code for page in visits.at_once(["/"] * 10)} == {200}
    assert len(sent) < 2 * alone  # and not ten times as much
    assert max(most) == 1
    engine.dispose()


@on_each_database
def test_the_transactions_of_the_dashboard_cannot_write(request, port_name):
    port = request.getfixturevalue(port_name)
    dashboard = Dashboard(ExecutionGuard(), port.engine, may_look=lambda _: True)

    def write(connection):
        connection.execute(text("DELETE FROM execution_requests"))

    deliver(port, "order-1")
    with Visits(mounted(dashboard)) as visits:
        answer = visits.run(dashboard._database.read([Part("bad", write), Part("good", lambda _: 1)]))
    assert "read" in answer["bad"].failed.lower()
    assert answer["good"].value == 1
    assert port.requests() == [("order-1", "completed")]
    deliver(port, "order-2")  # by the same connections, which can write again


def test_a_part_that_fails_says_why_and_the_others_stay(postgresql, monkeypatch):
    dashboard = Dashboard(ExecutionGuard(), postgresql.engine, may_look=lambda _: True)

    def sleep(_scopes, connection):
        connection.execute(text("SELECT pg_sleep(60)"))

    monkeypatch.setattr(dashboard._pages.requests, "dead", sleep)
    monkeypatch.setattr(dashboard._pages.requests, "due", lambda _, connection: connection.execute(text("SELECT 1/0")))
    with Visits(mounted(dashboard)) as visits:
        page = visits.get("/outbox")
        assert "it took longer than 2 seconds and was stopped" in page.text
        assert page.text.count("could not be read") == 2
        assert "None waits for its time." in page.text
        failed = visits.json("/outbox")["failed"]
        assert set(failed) == {"dead", "due"}


def test_a_database_that_does_not_answer_is_a_reason_on_every_part():
    engine = create_engine("postgresql+psycopg://127.0.0.1:1/nothing?connect_timeout=2")
    with Visits(mounted(Dashboard(ExecutionGuard(), engine, may_look=lambda _: True))) as visits:
        page = visits.get("/")
        assert page.status_code == 200
        assert "refused" in page.text


def test_the_rates_follow_from_the_counters_of_the_server():
    from safeagent_sa.dashboard._server import Rates

    rates = Rates()
    start = {"inserted": 1000, "updated": 900, "looked_up": 4000}
    assert rates.add(start, 0.0) is None
    assert rates.add(start, 10.0) is None
    # 300 new, 30 of them rolled back, and 600 replays: measured differences, see the docstring
    later = {"inserted": 1330, "updated": 1200, "looked_up": 4000 + 330 + 300 + 1200}
    found = rates.add(later, 60.0)
    assert (found["executed"], found["rolled_back"], found["answered"]) == (5.0, 0.5, 10.0)
    assert rates.add({"inserted": 1, "updated": 1, "looked_up": 1}, 70.0) is None  # the server began to count again
    assert rates.add(later, 110.0) is not None


@pytest.mark.parametrize("engine", [None, "sqlite://", object()])
def test_what_is_no_engine_is_refused(engine):
    with pytest.raises(TypeError, match="AsyncEngine"):
        Dashboard(ExecutionGuard(), engine)
    with pytest.raises(TypeError, match="ExecutionGuard"):
        Dashboard(engine, create_engine("sqlite://"))


def test_an_engine_in_autocommit_is_read_only_and_limited_all_the_same(postgresql):
    engine = postgresql.engine.execution_options(isolation_level="AUTOCOMMIT")

    def shown(connection):
        return [connection.scalar(text(f"SHOW {name}")) for name in ("transaction_read_only", "statement_timeout")]

    dashboard = Dashboard(ExecutionGuard(), engine, may_look=lambda _: True)
    with Visits(mounted(dashboard)) as visits:
        answers = visits.run(dashboard._database.read([Part("shown", shown)]))
    assert answers["shown"].value == ["on", "2s"]


def test_a_value_that_cannot_be_read_spoils_neither_the_other_parts_nor_the_app(sqlite):
    deliver(sqlite, "order-1")
    engine = create_engine(sqlite.url, pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE execution_requests SET created_at = 'garbage'")
    with Visits(mounted(Dashboard(ExecutionGuard(), engine, may_look=lambda _: True))) as visits:
        assert visits.get("/").status_code == 200
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE execution_requests SET created_at = CURRENT_TIMESTAMP")
    engine.dispose()
