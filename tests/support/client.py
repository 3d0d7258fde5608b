"""Delivers requests one after the other, in a separate process, and stores each answer before it counts as given.

python client.py URL LOG REQUEST_ID...

With READS_FIRST in its environment, each of its transactions begins as a reader of SQLite, reads, and claims then.
"""

import json
import os
import sys
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safeagent_sa import ExecutionGuard
from support.app import Payment, Port, deliver, make_engine, pay
from support.patience import PATIENCE


def deliver_after_a_read(port, name, guard):
    while True:
        try:
            with port.sessions() as session, session.begin():
                session.scalar(select(func.count()).select_from(Payment))
                return guard.execute(session, name, pay, name, action="pay", payload={"amount": 100})
        except OperationalError as error:  # another writer since the read
            if "locked" not in str(error):
                raise


def main(url, log, *names):
    engine = make_engine(url, poolclass=NullPool)
    reads_first = "READS_FIRST" in os.environ
    port = Port("client", url, engine.execution_options(sqlite_begin="DEFERRED") if reads_first else engine)
    guard = ExecutionGuard(wait_timeout=PATIENCE)
    with Path(log).open("a") as acknowledged:
        for name in names:
            execution = (deliver_after_a_read if reads_first else deliver)(port, name, guard)
            acknowledged.write(json.dumps([name, execution.result]) + "\n")
            acknowledged.flush()
            os.fsync(acknowledged.fileno())
            print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
