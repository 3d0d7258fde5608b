"""Delivers one request in a separate process and stops at a named point, where it can be released or killed.

    python worker.py URL PIPELINE REQUEST_ID [STOP_AT]

At the point it prints a line `at STOP_AT` and waits for a line on its standard input; at the end it prints the answer as JSON.
"""

import json
import os
import sys
from pathlib import Path

from sqlalchemy.pool import NullPool

from safeagent_sa import ExecutionGuard
from safeagent_sa._dialects.postgresql.pipeline import Pipeline


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.aio import AsyncPort, another_way, instead_of_guards
from support.app import pay
from support.patience import PATIENCE


STEPS = ["start", "begun", "claimed", "written", "settled", "committed"]


def main(url, pipeline, request_id, stop_at=None):
    def reach(step):
        if step == stop_at:
            print(f"at {step}", flush=True)
            sys.stdin.readline()

    begun, begin = [], Pipeline.begin
    Pipeline.begin = lambda *arguments: begun.append(arguments) or begin(*arguments)
    port = another_way(None, url, poolclass=NullPool)
    port.ask()
    reach("start")
    port.guard_options = {"pipeline": pipeline}
    if isinstance(port, AsyncPort):
        port.run(deliver, port=port, request_id=request_id, reach=reach)
    else:
        with instead_of_guards(deliver, ExecutionGuard, **port.guard_options):
            deliver(port, request_id, reach)
    assert bool(begun) == (pipeline == "auto"), "the claim was not pipelined"


def deliver(port, request_id, reach):
    guard = ExecutionGuard(wait_timeout=PATIENCE)
    with port.sessions() as session:
        session.connection()
        reach("begun")
        with guard.claim(session, request_id, action="pay", payload={"amount": 100}) as execution:
            reach("claimed")
            if not execution.is_replay:
                execution.complete(pay(session, request_id))
            reach("written")
        reach("settled")
        session.commit()
        reach("committed")
    print(json.dumps({"pid": os.getpid(), "is_replay": execution.is_replay, "result": execution.result}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
