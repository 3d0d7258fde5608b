"""A process that executes one effect: `worker.py URL FOLDER POLICY LEASE`. The ledger is a file; the call waits for another one."""

import sys
import time
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from safeagent_sa import ExecutionGuard, SafeAgentError, sqlite


url, folder, policy, lease = sys.argv[1:]
folder = Path(folder)
engine = create_engine(url)
if engine.dialect.name == "sqlite":
    sqlite.configure(engine)


def charge(effect):
    with (folder / "ledger").open("a") as ledger:
        ledger.write(f"{effect.idempotency_key} {effect.attempt}\n")
    print("called", flush=True)
    if effect.attempt == 1:
        while not (folder / "go on").exists():  # the test creates it, or kills this process
            time.sleep(0.01)
    return effect.attempt


try:
    effect = ExecutionGuard().effect("charge", lease=float(lease), when_in_doubt=policy)
    print("result", effect.execute(sessionmaker(engine), "charge-1", charge).result, flush=True)
except SafeAgentError as error:
    print("error", type(error).__name__, flush=True)
