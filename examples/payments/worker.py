"""Delivers one request as a queue's worker would, in a separate process, and prints the answer as one line of JSON.

    python -m payments.worker pay-1 2500

`--stop-at` serves the crash scenes of `safeagent-sa demo`: the worker reports on stdout where it has stopped, and continues
when it gets a line on stdin. The demo can kill it there, at an exact point instead of after a guessed time.

    ready        connected; nothing is sent
    inserted     the payment's INSERT was sent, the COMMIT was not
    committed    the COMMIT has succeeded; the caller has no answer
"""

from __future__ import annotations

import argparse
import json
import sys

from sqlalchemy import event

from safeagent_sa import OutcomeError

from .database import SessionLocal, engine
from .models import Payment
from .payments import send_payment


ACCOUNT_ID = 1
PAYEE = "ACME Ltd"


def deliver(request_id: str, amount_cents: int, stop_at: str | None) -> dict[str, object]:
    def reach(point: str) -> None:
        if point == stop_at:
            print(f"stopped at {point}", flush=True)
            if not sys.stdin.readline():
                sys.exit("stdin was closed while the worker waited for a line")

    engine.connect().close()
    reach("ready")
    # As an event, so that the business code is the same as in production.
    event.listen(Payment, "after_insert", lambda *_: reach("inserted"))
    try:
        with SessionLocal.begin() as session:
            execution = send_payment(session, request_id, account_id=ACCOUNT_ID, payee=PAYEE, amount_cents=amount_cents)
    except OutcomeError as error:  # the guard has refused; see safeagent_sa.errors
        return {"refused": type(error).__name__, "why": str(error)}
    reach("committed")
    return {"replay": execution.is_replay, "receipt": execution.result}


def main() -> None:
    parser = argparse.ArgumentParser(description="Deliver one payment request.")
    parser.add_argument("request_id")
    parser.add_argument("amount_cents", type=int)
    parser.add_argument("--stop-at", choices=["ready", "inserted", "committed"])
    arguments = parser.parse_args()
    print(json.dumps(deliver(arguments.request_id, arguments.amount_cents, arguments.stop_at)))


if __name__ == "__main__":
    main()
