"""The blocks of docs/answers.md, as pasted."""

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import safeagent_sa
from safeagent_sa import ExecutionGuard, metadata, sqlite


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "answers.md").read_text()


class Base(DeclarativeBase):
    pass


class DeclinedPayment(Base):
    __tablename__ = "declined_payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]


@pytest.fixture
def names(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    sqlite.configure(engine)
    for each in (metadata, Base.metadata):
        each.create_all(engine)
    yield {name: getattr(safeagent_sa, name) for name in safeagent_sa.__all__} | {
        "engine": engine,
        "guard": ExecutionGuard(),
        "SessionLocal": sessionmaker(engine),
        "Session": Session,
        "DeclinedPayment": DeclinedPayment,
    }
    engine.dispose()


def test_the_page_does_what_it_says(names, capsys):
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/answers.md", "exec"), names)

    assert names["answer"] == {"status": 402, "type": "card_declined", "detail": {"code": "insufficient_funds"}}
    assert capsys.readouterr().out.splitlines() == [
        "limit_exceeded {'limit': 100} False",
        "False {'parcel': 3}",
        "True {'parcel': 3}",
    ]
    with names["SessionLocal"]() as session:
        assert session.scalar(select(func.count()).select_from(DeclinedPayment)) == 2
        with pytest.raises(safeagent_sa.RequestRefusedError):
            names["guard"].execute(session, "order:1:pay", names["pay"], 1, 1, action="pay")
