"""The pages about verbs, as pasted, one after the other in one app, on both databases."""

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from support.app import make_engine
from support.pages import blocks

from safeagent_sa import ExecutionGuard, metadata


PAGES = ["batches.md", "decorator.md", "async.md", "adopt-safeagent.md"]


@pytest.fixture(params=["sqlite", "postgresql"])
def names(request, tmp_path, monkeypatch):
    """What the page about five steps has defined before."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("new_database")().render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)

    class Base(DeclarativeBase):
        pass

    class Payment(Base):
        __tablename__ = "payments"
        id: Mapped[int] = mapped_column(primary_key=True)
        amount: Mapped[int]

    def send_payment(session, amount):
        payment = Payment(amount=amount)
        session.add(payment)
        session.flush()
        return {"status": "sent", "receipt_id": f"rcpt_{payment.id}"}

    engine = make_engine(url)
    for each in (metadata, Base.metadata):
        each.create_all(engine)
    yield {
        "__name__": "__main__",
        "ExecutionGuard": ExecutionGuard,
        "Payment": Payment,
        "Session": Session,
        "SessionLocal": sessionmaker(engine),
        "engine": engine,
        "guard": ExecutionGuard(),
        "send_payment": send_payment,
    }
    engine.dispose()


def paste(page, names):
    for block in blocks(page):
        if block.language == "python" and "from alembic import op" not in block.text:
            exec(compile(block.text, f"docs/{page}", "exec"), names)


def count(names):
    with names["SessionLocal"]() as session:
        return session.query(names["Payment"]).count()


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_as_pasted_and_again(names, page, capsys):
    """The second time, as deliveries after a crash, nothing is paid."""
    paste(page, names)
    paid, said = count(names), capsys.readouterr().out
    assert paid > 0
    if page == "async.md":
        assert paid == 1
    else:
        paste(page, names)
        assert count(names) == paid
    if page == "batches.md":
        assert "nack msg-4 invalid literal" in said
        assert [line.split()[1] for line in said.splitlines() if line.startswith("ack")] == ["msg-3", "msg-5"]
        assert paid == 4
    if page == "adopt-safeagent.md":
        assert "duplicate blocked" not in said
        assert "duplicate blocked: {" in capsys.readouterr().out


def test_the_example_of_the_events_page_logs(names, caplog):
    caplog.set_level("DEBUG", "safeagent_sa")
    paste("events.md", names)
    with names["SessionLocal"]() as session, session.begin():
        names["guard"].execute(session, "order-1", names["send_payment"], 100, action="send_payment")
    assert [record.message.partition(" ")[0] for record in caplog.records] == ["Claimed", "Completed", "Committed"]
