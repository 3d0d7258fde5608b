"""docs/security.md: its recipe, as pasted, on every port, and the rows of its table that no other test shows."""

from __future__ import annotations

import json
import re
import types
import uuid

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import bindparam, select, text
from support import commands
from support.app import pay
from support.pages import ROOT, blocks
from support.ports import on_each_kind, ports
from support.visits import Visits

from safeagent_sa import (
    ExecutionFailedError,
    ExecutionGuard,
    ExecutionInDoubtError,
    ExecutionInProgressError,
    ExecutionRequest,
    InvalidResultError,
    ReceiptUnreadableError,
    RequestConflictError,
    RequestRefusedError,
)
from safeagent_sa._dialects.postgresql.statements import lock_key_of, lock_name
from safeagent_sa._request.canonical import canonical_json
from safeagent_sa._request.payloads import Fingerprinter
from safeagent_sa.dashboard import Dashboard
from safeagent_sa.effects import succeeded
from safeagent_sa.events import Claimed


BLOCKS = [block for block in blocks("security.md") if block.language == "python"]
SECRET = "MARKER-7f3a"
CONTENTS = ("result", "error", "payload", "details")

# psycopg 3 in both modes: with a type that converts, no claim goes by the pipelined path, whatever the guard asks for.
EACH_PORT = ["sqlite", "aiosqlite", "postgresql", "psycopg_async", "asyncpg", "psycopg2", "postgresql_key"]


@pytest.fixture
def recipe(monkeypatch):
    """The page's code as a module, with a key. Its table is that of the port: the columns are of the same types."""
    monkeypatch.setenv("RECEIPT_KEYS", Fernet.generate_key().decode())
    monkeypatch.setenv("FINGERPRINT_KEY", "x" * 32)
    module = types.ModuleType("recipe")
    for block in BLOCKS:
        exec(compile(block.text, "docs/security.md", "exec"), vars(module))
    return module


def key():
    return Fernet(Fernet.generate_key())


def stored(port):
    """The rows as they lie in the table."""
    with (getattr(port, "twin", None) or port).engine.connect() as connection:
        return [
            dict(row)
            for row in connection.execute(text("SELECT * FROM execution_requests ORDER BY request_id")).mappings()
        ]


def secret(_effect_or_session, *_):
    return {"iban": SECRET}


def fill(port, guard):
    """Store a secret in every way that there is; return what each retry must get."""
    with port.sessions() as session, session.begin():
        with guard.claim(session, "claim", action="pay", payload={"card": SECRET}) as execution:
            execution.complete({"iban": SECRET})
        with guard.claim(session, "refuse", action="pay") as execution:
            execution.refuse({"card": SECRET}, type="card_declined")
        with guard.claim_many(session, {"many-1": SECRET, "many-2": 2}, action="ingest") as batch:
            for execution in batch.new:
                execution.complete({"iban": SECRET})
        with guard.claim(session, "order", action="order") as execution:
            execution.effects.add("mail", {"to": SECRET})
            execution.effects.add("later", {"to": SECRET})
            execution.complete(None)
    guard.run_transaction(port.sessions, "run", secret, action="pay")
    guard.effect("charge").execute(port.sessions, "charged", secret)

    def declined(effect):
        raise effect.not_done(f"no {SECRET}", data={"code": SECRET})

    with pytest.raises(ExecutionFailedError):
        guard.effect("charge").execute(port.sessions, "failed", declined)

    def lost(_effect):
        raise TimeoutError(SECRET)

    for request_id in ("doubt", "resolved"):
        with pytest.raises(ExecutionInDoubtError):
            guard.effect("charge").execute(port.sessions, request_id, lost)
    with pytest.raises(InvalidResultError):
        guard.effect("charge").execute(port.sessions, "kept", lambda _effect: {"iban": {SECRET}})
    with port.sessions() as session, session.begin():
        guard.resolve(session, "resolved", succeeded({"iban": SECRET}), by="alice", evidence=SECRET)
    mails = []
    guard.relay(port.sessions, {"mail": lambda _effect, mail: mails.append(mail) or mail}).run_once()
    assert mails == [{"to": SECRET}]


def check(port, guard):
    """Ask for everything again."""
    with port.sessions() as session, session.begin():
        for request_id in ("claim", "many-1", "run", "charged", "resolved"):
            assert guard.get(session, request_id).result == {"iban": SECRET}, request_id
        with guard.claim(session, "claim", action="pay", payload={"card": SECRET}) as execution:
            assert execution.is_replay
        with pytest.raises(RequestConflictError):
            guard.execute(session, "claim", secret, action="pay", payload={"card": "other"})
        with guard.claim_many(session, {"many-1": SECRET, "many-2": 2}, action="ingest") as batch:
            assert [each.result for each in batch.replayed] == [{"iban": SECRET}] * 2
        with pytest.raises(RequestRefusedError) as refused:
            guard.get(session, "refuse")
        assert refused.value.data == {"card": SECRET}
        with pytest.raises(ExecutionFailedError) as failed:
            guard.get(session, "failed")
        assert (failed.value.data, failed.value.error_message) == ({"code": SECRET}, f"no {SECRET}")
        doubts = {each.request_id: each for each in guard.in_doubt(session)}
        assert doubts["doubt"].error_message == SECRET
        assert doubts["kept"].details == {"history": [{"not_stored": {"iban": [SECRET]}}]}
        assert guard.get(session, "order/mail").result == {"to": SECRET}


@pytest.fixture
def any_port(request):
    """A port that leaves the options of its guards to the test."""
    return request.getfixturevalue(request.param)


@ports(*EACH_PORT, among=EACH_PORT, argument="any_port")
@pytest.mark.parametrize("pipeline", ["off", "auto"])
def test_no_clear_text_lies_in_the_table(any_port, recipe, pipeline):
    port, events = any_port, []
    guard = ExecutionGuard(
        model=recipe.ExecutionRequest, fingerprint_keys=[b"x" * 32], pipeline=pipeline, listeners=[events.append]
    )
    fill(port, guard)
    check(port, guard)

    rows = stored(port)
    assert SECRET not in str(rows)
    found = {name: [row[name] for row in rows if row[name] is not None] for name in CONTENTS}
    assert all(len(values) >= 1 for values in found.values()), found
    assert all(value.startswith("gAAAAA") for values in found.values() for value in values)
    assert {event.is_pipelined for event in events if isinstance(event, Claimed)} == {False}


@on_each_kind
def test_receipts_outlive_the_rotation_of_their_key(port, recipe):
    first, second = key(), key()
    guard = ExecutionGuard(model=recipe.ExecutionRequest)
    recipe.keys = MultiFernet([first])
    fill(port, guard)
    recipe.keys = MultiFernet([second, first])
    check(port, guard)
    with port.sessions() as session, session.begin():
        guard.execute(session, "new", secret, action="pay")
    with pytest.raises(InvalidToken):  # the first token is of the first key
        second.decrypt(stored(port)[0]["result"])

    before = stored(port)
    recipe.encrypt_again(port.engine, slice_size=3)
    after = stored(port)
    assert [row["request_id"] for row in after] == [row["request_id"] for row in before]
    for row, old in zip(after, before, strict=True):
        assert {name: value for name, value in row.items() if name not in CONTENTS} == {
            name: value for name, value in old.items() if name not in CONTENTS
        }
    recipe.keys = MultiFernet([second])
    check(port, guard)


@on_each_kind
def test_without_its_key_nothing_runs_and_nothing_is_stored(port, recipe):
    guard = ExecutionGuard(model=recipe.ExecutionRequest)
    with port.sessions() as session, session.begin():
        guard.execute(session, "order-1", secret, action="pay")
    recipe.keys = MultiFernet([key()])
    before, calls = stored(port), []
    for _ in range(2):
        with pytest.raises(InvalidToken):
            guard.run_transaction(port.sessions, "order-1", calls.append, action="pay")
        with pytest.raises(InvalidToken):
            recipe.encrypt_again(port.engine)
    assert calls == []
    assert stored(port) == before


@on_each_kind
def test_a_result_that_was_made_up_is_refused(port, recipe):
    guard = ExecutionGuard(model=recipe.ExecutionRequest)
    with port.sessions() as session, session.begin():
        guard.execute(session, "order-1", secret, action="pay")
    token = stored(port)[0]["result"]
    # one that was changed, one of another key, and a clear one
    for made_up in (token[:40] + ("A" if token[40] != "A" else "B") + token[41:], key().encrypt(b"1").decode(), "1"):
        with port.sessions() as session, session.begin():
            session.execute(text("UPDATE execution_requests SET result = :it"), {"it": made_up})
        with port.sessions() as session, pytest.raises(InvalidToken):
            guard.execute(session, "order-1", pay, action="pay")
        assert port.payments("order-1") == 0


@on_each_kind
def test_a_table_with_rows_in_clear_text_becomes_an_encrypted_one(port, recipe):
    fill(port, ExecutionGuard())
    both = recipe.make_model(type("Other", (recipe.DeclarativeBase,), {}), contents=recipe.EncryptedOrClear)
    check(port, ExecutionGuard(model=both))
    with port.sessions() as session, session.begin():
        ExecutionGuard(model=both).execute(session, "new", secret, action="pay")
        # A process of the release before, without the type:
        with pytest.raises(ReceiptUnreadableError):
            ExecutionGuard().execute(session, "new", secret, action="pay")

    recipe.encrypt_again(port.engine)
    assert SECRET not in str(stored(port))
    for model in (both, recipe.ExecutionRequest):
        check(port, ExecutionGuard(model=model))


def test_the_dashboard_shows_contents_to_those_who_may_see_them_alone(sqlite, recipe):
    guard = ExecutionGuard(model=recipe.ExecutionRequest)
    fill(sqlite, guard)

    def yes(_request):
        return "alice"

    with Visits(Dashboard(guard, sqlite.engine, may_look=yes), "") as visits:
        assert SECRET not in visits.get("/request?id=claim").text
        assert "gAAAAA" not in visits.get("/request?id=claim").text
        assert visits.post("/reveal?id=claim").status_code == 403
        assert f"TimeoutError: {SECRET}" in visits.get("/in-doubt").text  # errors are shown, as the page says
    with Visits(Dashboard(guard, sqlite.engine, may_look=yes, may_reveal=yes), "") as visits:
        assert SECRET in visits.post("/reveal?id=claim").text


def test_the_command_line_decrypts_by_the_name_of_the_model(sqlite, recipe, tmp_path):
    fill(sqlite, ExecutionGuard(model=recipe.ExecutionRequest))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "models.py").write_text(BLOCKS[0].text)
    (line,) = [block.text.strip() for block in blocks("security.md") if block.language == "sh"]
    _, show, _, *options = line.split()

    def run(*words):
        done = commands.run("safeagent-sa", *words, cwd=tmp_path, DATABASE_URL=sqlite.url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for request_id, shown in (
        ("claim", {"iban": SECRET}),
        ("refuse", {"type": "card_declined", "data": {"card": SECRET}}),
    ):
        assert SECRET not in run(show, request_id)
        assert "gAAAAA" in run(show, request_id)
        assert json.loads(run(show, request_id, *options, "--json"))["result"] == shown
    assert SECRET not in run("list")
    run("resolve", "doubt", "succeeded", *options, "--result", json.dumps(SECRET), "--by", "bob", "--evidence", "seen")
    assert SECRET not in str(stored(sqlite))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop.models:Nothing", "has nothing called Nothing"),
        ("shop.models:keys", "is no model of the guard's table"),
        ("shop.missing:Model", "there is no module shop.missing"),
        (":Model", "a model is named as package.module:name"),
    ],
)
def test_a_name_that_is_no_model_is_refused_with_what_is_wrong(sqlite, recipe, tmp_path, name, said):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "models.py").write_text(BLOCKS[0].text)
    done = commands.run("safeagent-sa", "list", "--table-name", name, cwd=tmp_path, DATABASE_URL=sqlite.url)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_autogenerate_finds_no_difference(sqlite, recipe):
    with sqlite.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_name": is_ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, recipe.Base.metadata) == []


def is_ours(name, kind, _parents):
    return kind != "table" or name == "execution_requests"


def test_a_fingerprint_without_a_key_gives_small_payloads_away(sqlite):
    def fingerprint(guard, request_id):
        with sqlite.sessions() as session, session.begin():
            guard.execute(session, request_id, lambda _: None, action="pay", payload={"amount": 4711})
        return next(row["fingerprint"] for row in stored(sqlite) if row["request_id"] == request_id)

    def guessed(found):
        # What a reader of the table can do: it has no key.
        attacker = [Fingerprinter(), Fingerprinter([b"another key, made up"])]
        return [amount for amount in range(10_000) if found in {each.make({"amount": amount}) for each in attacker}]

    keyed = ExecutionGuard(fingerprint_keys=[b"x" * 32])
    assert guessed(fingerprint(ExecutionGuard(), "order-1")) == [4711]
    assert guessed(fingerprint(keyed, "order-2")) == []
    assert fingerprint(keyed, "order-2") == fingerprint(keyed, "order-3")  # equal payloads are seen to be equal
    assert canonical_json({"amount": 4711}) == b'{"amount":4711}'


def test_a_role_that_takes_the_lock_of_a_request_delays_it_and_no_more(postgresql):
    guard, role = ExecutionGuard(), f"safeagent_test_{uuid.uuid4().hex[:12]}"
    lock_key = lock_key_of(ExecutionRequest.__table__, bindparam("name"))
    with postgresql.engine.begin() as owner:
        owner.execute(text(f"CREATE ROLE {role}"))
        lock = {"key": owner.scalar(select(lock_key), {"name": lock_name("", "order-1")})}
    try:
        with postgresql.engine.connect() as other:
            other.execute(text(f"SET LOCAL ROLE {role}"))
            other.execute(text("SELECT pg_advisory_xact_lock(:key)"), lock)
            with postgresql.sessions() as session, session.begin(), pytest.raises(ExecutionInProgressError):
                guard.execute(session, "order-1", pay, "order-1", action="pay", wait_timeout=0)
            with postgresql.sessions() as session, session.begin():
                guard.execute(session, "order-2", pay, "order-2", action="pay", wait_timeout=0)  # only that one is busy
        for _ in range(2):
            with postgresql.sessions() as session, session.begin():
                guard.execute(session, "order-1", pay, "order-1", action="pay")
    finally:
        with postgresql.engine.begin() as owner:
            owner.execute(text(f"DROP ROLE {role}"))
    assert [postgresql.payments(each) for each in ("order-1", "order-2")] == [1, 1]


def test_each_id_of_a_client_is_one_row(sqlite):
    guard = ExecutionGuard()
    for number in range(20):
        for _ in range(3):
            guard.run_transaction(sqlite.sessions, f"guess-{number}", lambda _: None, action="pay", scope="client")
    assert len(stored(sqlite)) == 20


def test_every_row_of_the_page_names_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text()
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and "test_" in line]
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [test for row in table for test in re.findall(r"\btest_\w+", row[-1])]
    assert len(table) >= 15
    assert {len(row) for row in table} == {4}
    assert [test for test in named if not re.search(rf"^(async )?def {test}\(", sources, re.MULTILINE)] == []
