"""The blocks of docs/services-that-commit.md, as pasted."""

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from safeagent_sa import ExecutionGuard, NotCompletedError, metadata, sqlite


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "services-that-commit.md").read_text()


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


class Notice(Base):
    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[int]


@pytest.fixture
def names(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    sqlite.configure(engine)
    for each in (metadata, Base.metadata):
        each.create_all(engine)
    yield {
        "engine": engine,
        "guard": ExecutionGuard(),
        "SessionLocal": sessionmaker(engine),
        "Session": Session,
        "Payment": Payment,
        "Notice": Notice,
    }
    engine.dispose()


def test_the_page_does_what_it_says(names):
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for _ in range(2):
            exec(compile(block, "docs/services-that-commit.md", "exec"), names)
    assert names["execution"].is_replay
    factory, guard = names["SessionLocal"], names["guard"]

    for service in ("send_payment", "old_service"):
        with factory() as session:
            for _ in range(2):  # flushes, then commits, in a claim
                with pytest.raises(NotCompletedError) if service == "old_service" else session.begin():
                    guard.execute(session, service, names[service], 100, action="send_payment")
                session.rollback()

    with factory() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Payment, Notice)]
    assert counts == [3, 2]
