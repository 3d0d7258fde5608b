"""A small app with accounts and payments, and what safeagent_sa adds to it.

    models.py      the app's tables, and one more class: the execution table on the app's Base
    database.py    its engine, and one more line for SQLite
    payments.py    its business function, inside `guard.claim(...)`
    worker.py      delivers one request in a separate process
    migrations/    its Alembic history, to which `safeagent-sa revision` adds one revision

To run it, in this folder: `alembic upgrade head`, `safeagent-sa revision`, `alembic upgrade head`. Then run
`python -m payments.worker pay-1 2500` twice in the folder above.
"""
