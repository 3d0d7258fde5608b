"""The stages of a guarded transaction: functions that are wrapped, so that each is counted separately.

A stage is exclusive: what another stage inside it has taken is not a part of it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


OUTSIDE, WRAPPER = "everything else", "(wrapper)"
CALIBRATION = 20
"""How often a wrapper around nothing is called, to know what wrappers cost."""

STAGES = {
    "guard.claim()": ["safeagent_sa.guard:ExecutionGuard.claim"],
    "block": ["safeagent_sa._claim.block:claim"],
    "keys": ["safeagent_sa._request.ids:validate_key", "safeagent_sa._request.ids:validate_action"],
    "fingerprint": ["safeagent_sa._request.payloads:Fingerprinter.make"],
    "unflushed changes": ["safeagent_sa._transaction.session_watch:refuse_pending_writes"],
    "connection and protocol": ["safeagent_sa._claim.binding:connect"],
    "Session.connection": ["sqlalchemy.orm:Session.connection"],
    "claim": ["safeagent_sa._claim.acquire:claim"],
    "claim: statement": ["safeagent_sa._dialects.postgresql.protocol:PostgreSQL.insert_or_find"],
    "claim: with BEGIN": ["safeagent_sa._dialects.postgresql.fast_path:FastPath.begin_with"],
    "pipeline": [
        "safeagent_sa._dialects.postgresql.pipeline:Pipeline.of",
        "safeagent_sa._dialects.postgresql.pipeline:Pipeline.begin",
        "safeagent_sa._dialects.postgresql.pipeline:Pipeline.commit",
    ],
    "psycopg: wait": ["psycopg:Connection.wait"],
    "psycopg: execute": ["psycopg:Cursor.execute"],
    "psycopg: fetch": ["psycopg:Cursor.fetchone"],
    "psycopg: COMMIT": ["psycopg:Connection.commit"],
    "psycopg: ROLLBACK": ["psycopg:Connection.rollback"],
    "SQLAlchemy: statement": ["sqlalchemy:Connection.exec_driver_sql"],
    "SQLAlchemy: first row": ["sqlalchemy.engine:CursorResult.first"],
    "watch": ["safeagent_sa._transaction.session_watch:watch"],
    "session's listeners": ["safeagent_sa._transaction.session_events:listen"],
    "what is open here": ["safeagent_sa._transaction.open_guarded:note"],
    "begin": ["safeagent_sa._claim.acquire:begin"],
    "Execution": ["safeagent_sa.execution:Execution.__init__"],
    "complete()": ["safeagent_sa.execution:Execution.complete"],
    "result text": ["safeagent_sa._request.json_text:round_trip", "safeagent_sa._request.json_text:decode"],
    "settle": ["safeagent_sa._claim.complete:settle"],
    "Session.flush": ["sqlalchemy.orm:Session.flush"],
    "before_commit": ["safeagent_sa._transaction.session_watch:_before_commit"],
    "do_commit": ["safeagent_sa._transaction.commit_guard:CommitGuard.do_commit"],
    "prove": ["safeagent_sa._transaction.guarded_transaction:GuardedTransaction.prove"],
    "completion: statement": ["safeagent_sa._dialects.postgresql.protocol:PostgreSQL.complete"],
    "notes of local commits": ["safeagent_sa._dialects.drivers:note_local_commits"],
    "do_rollback": ["safeagent_sa._transaction.commit_guard:CommitGuard.do_rollback"],
    "do_execute": ["safeagent_sa._transaction.commit_guard:CommitGuard.do_execute"],
    "replay": ["safeagent_sa._claim.acquire:replay"],
    "answer": ["safeagent_sa._claim.outcome:answer"],
    "Session()": ["sqlalchemy.orm:Session.__init__"],
    "Session.commit": ["sqlalchemy.orm:Session.commit"],
    "Session.close": ["sqlalchemy.orm:Session.close"],
    "HTTP: key": ["safeagent_sa.integrations.http:HttpPolicy.key_of"],
    "HTTP: payload": ["safeagent_sa.integrations.http:request_payload"],
    "HTTP: what is stored": ["safeagent_sa.integrations.http:HttpResponse.stored"],
    "HTTP: claim": ["safeagent_sa.integrations._fastapi_block:Block.claim"],
}
"""The functions of each stage."""


@contextmanager
def watched(mark: Callable[[], None]) -> Iterator[Watching]:
    """Wrap the functions of all stages; they are as they were afterwards."""
    watching = Watching(mark)
    undo: list[Callable[[], None]] = []
    try:
        for label, functions in STAGES.items():
            for where in functions:
                undo += watching.wrap(label, where)
        yield watching
    finally:
        for each in reversed(undo):
            each()


class Watching:
    """What is inside which stage."""

    def __init__(self, mark: Callable[[], None]) -> None:
        self._mark = mark
        self._labels: list[str] = []
        self._stack: list[str] | None = None

    def count(self, contestant: Callable[[int], None], times: int) -> list[str]:
        """Run a contestant; return the label of each mark, with a slash where a stage ends."""
        nothing = self._wrapped(WRAPPER, lambda: None)
        self._stack = [WRAPPER]
        self._note(WRAPPER)
        for _ in range(CALIBRATION):
            nothing()
        self._stack = [OUTSIDE]
        contestant(times)
        self._note(OUTSIDE)
        self._stack = None
        return self._labels

    def _note(self, label: str) -> None:
        self._labels.append(label)
        self._mark()

    def wrap(self, label: str, where: str) -> list[Callable[[], None]]:
        """Wrap one function wherever it was imported to; return what undoes it."""
        module, _, path = where.partition(":")
        owner: Any = import_module(module)
        *owners, name = path.split(".")
        for each in owners:
            owner = getattr(owner, each)
        raw = vars(owner).get(name, getattr(owner, name))
        is_class_method = isinstance(raw, classmethod)
        wrapped: Any = self._wrapped(label, raw.__func__ if is_class_method else raw)
        new = classmethod(wrapped) if is_class_method else wrapped
        places = [owner]
        if not isinstance(owner, type):
            ours = [each for key, each in sys.modules.items() if key.startswith("safeagent_sa")]
            places += [each for each in ours if each is not owner and vars(each).get(name) is raw]
        for each in places:
            setattr(each, name, new)
        return [functools.partial(setattr, each, name, raw) for each in places]

    def _wrapped(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            stack = self._stack
            if stack is None:
                return function(*args, **kwargs)
            self._note(stack[-1])
            stack.append(label)
            try:
                return function(*args, **kwargs)
            finally:
                stack.pop()
                self._note(f"/{label}")

        return wrapper
