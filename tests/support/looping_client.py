"""Delivers requests without end, some of them known to other clients, and writes down each acknowledged answer.

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
    # so that they meet each other on both paths
    guard = ExecutionGuard(wait_timeout=5, pipeline="auto" if int(number) % 2 else "off")
    with Path(log).open("a") as acknowledged:
        while True:
            # ids of the same second are shared by all clients, so that they meet
            name = f"order-{int(time.time())}-{chance.randrange(40)}"
            for _ in range(1000):
                try:
                    execution = deliver(port, name, guard)
                except (DBAPIError, ExecutionInProgressError):
                    time.sleep(0.05)  # the server is away; a real client pauses, too
                    continue
                acknowledged.write(f"{name} {execution.result['receipt']}\n")
                acknowledged.flush()
                os.fsync(acknowledged.fileno())
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
