"""Runs callers in every possible order of their statements, on a real server, and checks the promise after each order.

Each caller is a thread with its own connection. It stops before every statement and COMMIT until the explorer lets it
continue. After each step the explorer waits until the caller has reached its next step, has ended, or waits for a lock
according to the server's lock table. A schedule is the list of choices; the explorer tries all of them, depth first.
"""

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass, field
from unittest import mock

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util import greenlet_spawn

from safeagent_sa import ExecutionGuard
from safeagent_sa._dialects.postgresql.pipeline import Pipeline
from safeagent_sa._transaction.guarded_engine import install
from support.aio import Facade
from support.app import asked, deliver, pay
from support.patience import PATIENCE
from support.waiting import until


REQUEST = "order-1"

_here = threading.local()


def _begin(pipeline, *arguments, begin=Pipeline.begin):
    if (caller := getattr(_here, "caller", None)) is not None:
        caller.before_batch()
    return begin(pipeline, *arguments)


def _send(pipeline, *arguments, send=Pipeline.send, **options):
    if (caller := getattr(_here, "caller", None)) is not None:
        caller.before_batch()
    return send(pipeline, *arguments, **options)


class Crashed(BaseException):
    """The caller's process is gone; none of its code runs any more."""


@dataclass
class Fault:
    """What happens to one caller at one of its steps, counted from 0.

    "crash": its process and its server backend die before the step. "lost answer": the step is a COMMIT, which the server
    executes, and whose answer never arrives.
    """

    caller: int
    step: int
    kind: str


@dataclass
class Report:
    """The counts and the violations of an exploration."""

    schedules: int = 0
    executed: int = 0
    faults: int = 0
    violations: list = field(default_factory=list)


class Caller:
    """One caller, for all schedules, so that it connects only once."""

    def __init__(self, explorer, number):
        self.explorer, self.number = explorer, number
        # With a ping, so that every schedule begins in the same way, even after a crash of this caller.
        options = {"isolation_level": explorer.level, "pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}
        self.runner = asyncio.Runner() if explorer.is_async else None
        self.made = (create_async_engine if explorer.is_async else create_engine)(explorer.url, **options)
        self.engine = self.made.sync_engine if explorer.is_async else self.made
        self.sessions = sessionmaker(self.engine)
        self.runner.run(greenlet_spawn(asked, self.engine)) if self.runner else asked(self.engine)
        self.changed = threading.Condition()
        self.pid, self.is_leaving = None, False
        # Behind the guard's own steps: with a listener, or a wrapper in front of them, nothing would be pipelined.
        self.commit_guard = install(self.engine.dialect)
        self.send, self.commit_guard.send = self.commit_guard.send, self._send
        self.execute, self.commit_guard._do_execute = self.commit_guard._do_execute, self._execute

    def start(self, fault):
        self.fault, self.step, self.trace, self.waits_briefly = fault, 0, [], False
        self.state, self.answer, self.error = "running", None, None
        self.pid, self.is_leaving = None, False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def go(self):
        with self.changed:
            self.state = "running"
            self.changed.notify_all()

    def leave(self):
        """End the caller's work, at whatever step."""
        self.is_leaving = True
        if self.pid is not None and self.thread.is_alive():
            self.explorer.kill_backend(self.pid)
            self.go()
            self.thread.join(timeout=PATIENCE)

    def close(self):
        if self.runner is None:
            self.made.dispose()
        else:
            self.runner.run(self.made.dispose())
            self.runner.close()

    def _run(self):
        _here.caller = self  # for the batches, for which SQLAlchemy has no event
        try:
            # Each caller has its own event loop, which stops whenever the caller does.
            self.answer = self.runner.run(greenlet_spawn(self._deliver)) if self.runner else self._deliver()
        except BaseException as error:  # noqa: BLE001 - the checks look at it
            self.error = error
        self._become("ended")

    def _deliver(self):
        with self.sessions() as session, session.begin():
            driver = session.connection().connection.driver_connection
            self.pid = driver.get_server_pid() if hasattr(driver, "get_server_pid") else driver.info.backend_pid
            guard = self.explorer.guard
            with guard.claim(session, REQUEST, action="pay", payload={"amount": 100}) as execution:
                if not execution.is_replay:
                    execution.complete(pay(session, REQUEST))
        return execution.result

    def _become(self, state):
        with self.changed:
            self.state = state
            self.changed.notify_all()

    def _execute(self, cursor, statement, parameters, *context):
        if not self.explorer.skips(statement):
            self._stop_at(statement.split()[0])
            # A wait of a millisecond is over before it could be seen.
            is_limit = isinstance(parameters, dict) and "milliseconds" in parameters
            self.waits_briefly = parameters["milliseconds"] == 1 if is_limit else self.waits_briefly
        self.execute(cursor, statement, parameters, *context)

    def before_batch(self):
        self._stop_at("BEGIN with claim")

    def _send(self, pooled, *batch):
        self._stop_at("COMMIT", lambda: self.send(pooled, *batch))
        self.send(pooled, *batch)

    def _stop_at(self, name, commit=None):
        self.trace.append(name)
        with self.changed:
            self.state = "ready"
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.state == "running")
        if self.is_leaving:
            raise Crashed
        step, self.step = self.step, self.step + 1
        if self.fault is None or self.fault.step != step:
            return
        self.fault_happened = True
        self.explorer.report.faults += 1
        if self.fault.kind == "lost answer":
            commit()
        self.explorer.kill_backend(self.pid)
        raise Crashed

    def settled_state(self):
        """Wait until this caller has stopped: ready, ended, or waiting for a lock."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.state != "running", timeout=0.002)
                if self.state != "running":
                    return self.state
            if self.pid is not None and not self.waits_briefly and self.explorer.waits_for_lock(self.pid):
                return "waiting"
            assert time.monotonic() < deadline, (self.number, self.trace)


class Explorer:
    """All schedules of some callers of one request, on one isolation level.

    `driver` is SQLAlchemy's name of the driver, with "+pipeline" for a guard that is pipelined. `skips` names statements
    that no order changes anything for: a caller does not stop before them.
    """

    def __init__(
        self, port, *, driver="psycopg", callers=2, level="READ COMMITTED", wait_timeout=None, skips=lambda _: False
    ):
        self.port, self.level, self.skips = port, level, skips
        driver, _, mode = driver.partition("+")
        self.url = make_url(port.url).set(drivername=f"postgresql+{driver}")
        self.is_async = driver != "psycopg"
        options = {"pipeline": "auto" if mode else "off"}
        self.guard = (Facade if self.is_async else ExecutionGuard)(wait_timeout=wait_timeout, **options)
        self.batches = mock.patch.multiple(Pipeline, begin=_begin, send=_send)
        self.batches.start()
        self.report = Report()
        self.monitor = create_engine(port.url, isolation_level="AUTOCOMMIT").connect()
        self.callers = [Caller(self, number) for number in range(callers)]

    def close(self):
        for caller in self.callers:
            caller.leave()  # after a failure a caller may still hold locks in an open transaction
        self.batches.stop()
        self.monitor.close()
        self.monitor.engine.dispose()
        for caller in self.callers:
            caller.close()

    def explore(self, fault=None, limit=None, choose=None):
        """Run every schedule, or `limit` random ones by `choose`; return one trace for each."""
        prefix, traces = [], []
        while prefix is not None:
            taken, options, trace = self._run(prefix, fault, choose)
            traces.append(trace)
            self.report.schedules += 1
            if limit is not None and len(traces) >= limit:
                break
            prefix = [] if choose else _next(taken, options)
        return traces

    def _run(self, prefix, fault, choose):
        self.port.clear()
        for caller in self.callers:
            caller.start(fault if fault and fault.caller == caller.number else None)
        taken, options, order = [], [], []
        for position in itertools.count():
            if taken:  # the others may wait for a lock of this caller, so its state comes first
                self.callers[taken[-1]].settled_state()
            states = [caller.settled_state() for caller in self.callers]
            ready = [number for number, state in enumerate(states) if state == "ready"]
            if not ready:
                assert all(state == "ended" for state in states), ("deadlock", states, order)
                break
            pick = choose or min
            choice = prefix[position] if position < len(prefix) else pick(ready)
            assert choice in ready, ("the same choices have led to another state", prefix, order)
            taken.append(choice)
            options.append(ready)
            order.append((choice, self.callers[choice].trace[-1]))
            self.callers[choice].go()
        for caller in self.callers:
            caller.thread.join()
        self._check(fault, order)
        return taken, options, order

    def _check(self, fault, order):
        first_answers = [caller.answer for caller in self.callers if caller.answer is not None]
        plain = ExecutionGuard(pipeline="off")
        answers = [*first_answers, *(deliver(self.port, REQUEST, plain).result for _ in range(2))]
        payments, requests = self.port.payments(REQUEST), self.port.requests()
        self.report.executed += len(first_answers)
        if payments != 1 or requests != [(REQUEST, "completed")] or any(answer != answers[0] for answer in answers):
            self.report.violations.append((fault, order, payments, requests, answers))

    def waits_for_lock(self, pid):
        """Return whether a caller waits for another one; a wait for autovacuum does not count, since it ends."""
        others = [caller.pid for caller in self.callers if caller.pid is not None]
        query = text("SELECT pg_blocking_pids(:pid) && CAST(:others AS integer[])")
        return self.monitor.scalar(query, {"pid": pid, "others": others})

    def kill_backend(self, pid):
        # in a new connection: the monitor belongs to the explorer's thread
        with self.monitor.engine.connect() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            left = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            until(f"the end of backend {pid}", lambda: not connection.scalar(left, {"pid": pid}))


def _next(taken, options):
    """Return the choices of the next schedule, depth first, or None after the last one."""
    for position in reversed(range(len(taken))):
        later = [option for option in options[position] if option > taken[position]]
        if later:
            return [*taken[:position], later[0]]
    return None
