"""A worker that forks after the app was loaded and has claimed, as with `gunicorn --preload`: `python preload.py URL`."""

import json
import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from support.app import Payment

from safeagent_sa import ExecutionGuard


engine = create_engine(sys.argv[1])
sessions = sessionmaker(engine)
guard = ExecutionGuard(pipeline="auto", wait_timeout=60)


def pay(session, reference):
    session.add(Payment(reference=reference, amount=100))
    session.flush()
    return os.getpid()


def deliver(reference):
    execution = guard.run_transaction(sessions, reference, pay, reference, action="pay")
    return execution.is_replay, execution.result


with sessions() as kept, kept.begin():  # a connection with a transaction that is open at the fork
    for number in range(3):
        deliver(f"parent-{number}")
    kept.connection()
    readers = []
    for number in range(4):
        reader, writer = os.pipe()
        if os.fork() == 0:
            if "dispose" in sys.argv:
                engine.dispose(close=False)
            answers = [deliver("shared"), deliver(f"child-{number}"), deliver("parent-0")]
            os.write(writer, json.dumps(answers).encode())
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    answers = [json.loads(os.fdopen(reader).read()) for reader in readers]
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in readers]
    # The parent's transaction has survived its children.
    deliver("parent-last")
print(json.dumps({"codes": codes, "answers": answers, "pid": os.getpid()}))
