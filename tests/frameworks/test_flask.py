"""Flask-SQLAlchemy's sessions: global, by bind, and in threads of one app."""

import threading

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from safeagent_sa import ExecutionGuard, ExecutionRequestMixin, NotCompletedError, SecondDatabaseError, make_model


class Shop:
    """An app with a table on its default database and one on the bind `trading`."""

    def __init__(self, url, trading):
        class Base(DeclarativeBase):
            pass

        self.db = db = SQLAlchemy(model_class=Base)

        class Payment(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)
            key: Mapped[str]

        class TradeRequest(ExecutionRequestMixin, db.Model):
            __bind_key__ = "trading"
            __tablename__ = "trade_requests"

        self.Payment, self.TradeRequest, self.ExecutionRequest = Payment, TradeRequest, make_model(db.Model)
        self.guard = ExecutionGuard(model=self.ExecutionRequest)
        self.app = Flask("shop")
        self.app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_BINDS={"trading": trading}, TESTING=True)
        db.init_app(self.app)

        @self.guard.idempotent(session=db.session, request_id="pay:{key}", action="pay")
        def pay(key: str, *, is_committed: bool = False) -> int:
            payment = Payment(key=key)
            db.session.add(payment)
            db.session.flush()
            if is_committed:
                db.session.commit()
            return payment.id

        @self.app.post("/pay/<key>")
        def post(key):
            receipt = pay(key)
            db.session.commit()
            return {"payment": receipt}

        self.pay = pay
        with self.app.app_context():
            db.create_all()


@pytest.fixture
def shop(new_database):
    urls = [new_database().render_as_string(hide_password=False) for _ in range(2)]
    shop = Shop(*urls)
    yield shop
    with shop.app.app_context():
        for engine in shop.db.engines.values():
            engine.dispose()


def test_requests_that_race_in_threads_execute_once(shop):
    answers, begin = [], threading.Barrier(4)

    def deliver():
        begin.wait()
        answers.append(shop.app.test_client().post("/pay/order-1").json)

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [answers[0]] * 4
    with shop.app.app_context():
        assert shop.db.session.query(shop.Payment).count() == 1


def test_a_commit_in_the_function_is_refused_and_nothing_is_stored(shop):
    with shop.app.app_context():
        with pytest.raises(NotCompletedError, match=r"test_flask\.py"):
            shop.pay("order-1", is_committed=True)
    with shop.app.app_context():
        assert shop.db.session.query(shop.Payment).count() == 0
        assert shop.pay("order-1") > 0


def test_a_table_on_a_bind_is_claimed_on_its_engine(shop):
    guard = ExecutionGuard(model=shop.TradeRequest)
    with shop.app.app_context():
        session = shop.db.session
        with guard.claim(session, "trade-1", action="trade") as execution:
            execution.complete("done")
        session.commit()
        assert session.query(shop.TradeRequest).one().status == "completed"
        assert session.connection(bind_arguments={"mapper": shop.TradeRequest}).engine is shop.db.engines["trading"]


def test_business_rows_of_another_bind_are_refused(shop):
    guard = ExecutionGuard(model=shop.TradeRequest)
    with shop.app.app_context():
        with pytest.raises(SecondDatabaseError):
            with guard.claim(shop.db.session, "trade-1", action="trade") as execution:
                shop.db.session.add(shop.Payment(key="order-1"))
                execution.complete("done")
            shop.db.session.commit()
        shop.db.session.rollback()
        assert shop.db.session.query(shop.Payment).count() == 0
