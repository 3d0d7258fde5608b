"""A charge at a payment provider and a mail, with faults between the call and the record.

    provider.py    a local HTTP server with the idempotency keys of a payment provider, and a ledger to read
    app.py         the app: one effect for each way to handle doubt
    __main__.py    delivers requests with a fault at the worst moment, again and again, and reads the ledger

Run it with `python -m examples.charges` in a checkout, or with `python -m safeagent_sa.examples.charges` once it is installed.
"""
