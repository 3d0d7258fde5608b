"""Delivers requests one after the other, in a separate process, and stores each answer before it counts as given.

python client.py URL LOG REQUEST_ID...
"""

import json
import os
import sys
from pathlib import Path

from sqlalchemy.pool import NullPool


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safeagent_sa import ExecutionGuard
from support.app import Port, deliver, make_engine
from support.patience import PATIENCE


def main(url, log, *names):
    port = Port("client", url, make_engine(url, poolclass=NullPool))
    guard = ExecutionGuard(wait_timeout=PATIENCE)
    with Path(log).open("a") as acknowledged:
        for name in names:
            execution = deliver(port, name, guard)
            acknowledged.write(json.dumps([name, execution.result]) + "\n")
            acknowledged.flush()
            os.fsync(acknowledged.fileno())
            print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
