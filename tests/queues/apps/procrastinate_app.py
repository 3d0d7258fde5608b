"""procrastinate, on the PostgreSQL of the payments."""

from common import DATABASE_URL, IS_GUARDED, SessionLocal, guard, pay, pay_unguarded
from procrastinate import App, PsycopgConnector
from sqlalchemy.orm import Session

from safeagent_sa.integrations.procrastinate import guarded


app = App(connector=PsycopgConnector(conninfo=DATABASE_URL.replace("+psycopg", "")))

if IS_GUARDED:

    @app.task(name="pay", pass_context=True)
    @guarded(guard, SessionLocal)
    def pay_once(session: Session, order_id: int, amount: int):
        return pay(session, order_id, amount)

    @app.task(name="pay_keyed", pass_context=True, retry=1)
    @guarded(guard, SessionLocal, request_id="order:{order_id}:pay")
    def pay_keyed(session: Session, order_id: int, amount: int):
        return pay(session, order_id, amount)

else:

    @app.task(name="pay")
    def unguarded(order_id, amount):
        return pay_unguarded(order_id, amount)

    @app.task(name="pay_keyed")
    def unguarded_too(order_id, amount):
        return pay_unguarded(order_id, amount)
