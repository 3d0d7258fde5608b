"""Delivers requests without end, some of them shared with other clients, and stores each acknowledged answer.

python looping_client.py URL LOG NUMBER
"""

import os
import random
import sys
import time
from pathlib import Path

from sqlalchemy.exc import DBAPIError


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safeagent_sa import ExecutionGuard, ExecutionInProgressError
from support.app import Port, deliver, make_engine


def main(url, log, number):
    chance = random.Random(int(number))
    port = Port("client", url, make_engine(url, pool_size=1))
    # so that both paths meet
    guard = ExecutionGuard(wait_timeout=5, pipeline="auto" if int(number) % 2 else "off")
    with Path(log).open("a") as acknowledged:
        while True:
            # all clients share the ids of a second, so that they meet
            name = f"order-{int(time.time())}-{chance.randrange(40)}"
            for _ in range(1000):
                try:
                    execution = deliver(port, name, guard)
                except (DBAPIError, ExecutionInProgressError):
                    time.sleep(0.05)  # the server is down; a real client pauses as well
                    continue
                acknowledged.write(f"{name} {execution.result['receipt']}\n")
                acknowledged.flush()
                os.fsync(acknowledged.fileno())
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
