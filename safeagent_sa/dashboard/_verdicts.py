"""A person's verdict on a request in doubt: what the form says, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .._effects import doubt as doubts
from .._effects.verdict import Answer, Verdict
from .._inspection.timeline import Step
from .._request.ids import Key
from .._request.results import PLAIN
from .._settings import Settings
from ..errors import NotInDoubtError, SafeAgentError
from ._database import reason
from ._reads import Requests


ANSWERS = {
    Answer.SUCCEEDED: "It happened, once",
    Answer.NOT_EXECUTED: "It did not happen, and nothing is on its way",
    Answer.MORE_THAN_ONCE: "It happened more than once",
    Answer.UNKNOWN: "It is not known yet",
}
"""The answers in the words of the form; none is chosen before the person chooses."""

_LOCK_NOT_AVAILABLE = "55P03"


class RefusedError(Exception):
    """A verdict that is not recorded; the message is a sentence for the person.

    Attributes:
        status: The status of the HTTP answer.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Form:
    """What a person has filled in."""

    key: Key
    answer: str
    evidence: str
    result: str

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Form:
        """Return what a browser has sent."""

        def field(name: str) -> str:
            value = fields.get(name)
            # Browsers send line ends as CR LF (HTML standard, "Constructing the entry list").
            return value.replace("\r\n", "\n").strip() if isinstance(value, str) else ""

        return cls(Key(field("scope"), field("id")), field("answer"), field("evidence"), field("result"))

    def verdict(self) -> Verdict:
        """Return the verdict, or raise RefusedError."""
        if self.answer not in {answer.value for answer in ANSWERS}:
            raise RefusedError("Choose what you have found out.")
        if not any(each.isprintable() and not each.isspace() for each in self.evidence):
            raise RefusedError("Write how you found it out: it is kept with the request.")
        answer = Answer(self.answer)
        if answer is not Answer.SUCCEEDED and self.result:
            raise RefusedError(
                "Only a request that has happened has a result: remove the result, or choose another answer."
            )
        try:
            return Verdict(answer, json.loads(self.result) if self.result else None)
        except (ValueError, RecursionError):
            raise RefusedError('The result is not JSON. A text needs quotation marks: "ch_1".') from None


def record(settings: Settings, requests: Requests, form: Form, by: str, connection: Connection) -> str:
    """Record the verdict in its own transaction; return what the person reads, or raise RefusedError."""
    verdict = form.verdict()
    try:
        with Session(connection) as session, session.begin():
            if connection.dialect.name == "postgresql":
                session.execute(text("SELECT set_config('lock_timeout', '2s', true)"))
            doubts.resolve(
                settings,
                session,
                form.key.request_id,
                verdict,
                by=by,
                evidence=form.evidence,
                scope=form.key.scope,
                result_type=PLAIN,
            )
            latest = _latest(requests, form.key, session.connection())
    except NotInDoubtError:
        with connection.begin():
            latest = _latest(requests, form.key, connection)
        raise RefusedError(_settled(form.key, latest), 409) from None
    except SafeAgentError as error:
        raise RefusedError(str(error)) from None
    except DBAPIError as error:
        raise RefusedError(_failed(form.key, error), 409 if _state(error) == _LOCK_NOT_AVAILABLE else 503) from None
    # The same verdict was recorded before, and this one added nothing.
    if latest is None or (latest["by"], latest["evidence"]) != (by, form.evidence):
        raise RefusedError(_settled(form.key, latest), 409)
    return f"{form.key.request_id}: {latest['what']}, recorded for {by}."


def _latest(requests: Requests, key: Key, connection: Connection) -> dict[str, Any] | None:
    row = requests.one(key, connection)
    steps = [] if row is None else row["steps"]
    return next((step for step in reversed(steps) if step["kind"] == "resolved"), None)


def _settled(key: Key, latest: dict[str, Any] | None) -> str:
    if latest is None:
        return f"{key.request_id} is not in doubt: another attempt, or its probe, has settled it. Nothing was recorded."
    step = Step(**latest)
    moment = "" if step.at is None else f" at {step.at:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"{key.request_id} was resolved by {step.by}{moment}: {step.what}. Evidence: {_text(step.evidence)}. Your verdict was not "
        "recorded."
    )


def _state(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def _failed(key: Key, error: DBAPIError) -> str:
    if _state(error) == _LOCK_NOT_AVAILABLE:
        return f"Another transaction is changing {key.request_id} at this moment. Look at it again, then decide."
    return (
        f"The database reports: {reason(error)}. Look at {key.request_id} again to see whether your verdict is there."
    )


def _text(evidence: Any) -> str:
    return evidence if isinstance(evidence, str) else json.dumps(evidence, ensure_ascii=False)
