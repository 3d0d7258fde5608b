"""A small app with accounts and payments, as it may have existed before safeagent_sa; and what it took to add it.

    models.py      its tables, and one class more: the execution table on the app's own Base
    database.py    its engine, and one line more for SQLite
    payments.py    its business function, inside `guard.claim(...)`
    worker.py      delivers one request in a process of its own
    migrations/    its own Alembic history; `safeagent-sa revision` adds one revision to it

To run it, in this folder: `alembic upgrade head`, `safeagent-sa revision`, `alembic upgrade head`; then, in the folder
above, twice: `python -m payments.worker pay-1 2500`.
"""
