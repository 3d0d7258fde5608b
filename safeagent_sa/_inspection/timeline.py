"""What happened to one request, step by step, as its row shows it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._dialects.moments import LAST
from .._request import json_text
from ..execution import ExecutionStatus


class Step(NamedTuple):
    """One step.

    Attributes:
        kind: "attempt", "started", "error", "lease", "probed", "resolved", or the status that it had from then on.
        at: When, timezone-aware; None where the row does not say.
        what: What happened, as a sentence without its end.
        by: Who has found it out, or "".
        evidence: How it was found out: any JSON value, or None.
    """

    kind: str
    at: dt.datetime | None
    what: str
    by: str = ""
    evidence: Any = None


_ENDS: dict[str, str] = {
    ExecutionStatus.COMPLETED: "completed; every retry gets the receipt",
    ExecutionStatus.REFUSED: "refused; every retry gets the refusal",
    ExecutionStatus.FAILED: "recorded as failed",
    ExecutionStatus.EXPIRED: "completed; the receipt was purged since, and the id stays used",
}
_FINDINGS = {
    "succeeded": "it has happened",
    "not_executed": "it has not happened, and nothing is on its way",
    "executed_more_than_once": "it has happened more than once",
    "unknown": "it is not known yet",
}


def timeline(row: Any, now: dt.datetime | None = None) -> list[Step]:
    """Return the steps of a request in the order of time.

    Args:
        row: A row of the table as a mapping, with all its columns.
        now: The database's clock, to say whether a lease has ended; None for this machine's.
    """
    steps = list(_steps(row, now or dt.datetime.now(dt.timezone.utc)))
    latest, places = dt.datetime.min.replace(tzinfo=dt.timezone.utc), []
    for step in steps:
        latest = step.at or latest
        places.append(latest)
    # Stable, so that a step without a moment stays behind the one that it belongs to.
    return [step for _, step in sorted(zip(places, steps, strict=True), key=lambda found: found[0])]


def aware(moment: Any) -> dt.datetime | None:
    """Return a moment in UTC; SQLite stores it without a time zone."""
    if isinstance(moment, str):
        try:
            moment = dt.datetime.fromisoformat(moment)
        except ValueError:
            return None
    if not isinstance(moment, dt.datetime):
        return None
    return moment.astimezone(dt.timezone.utc) if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)


def _steps(row: Any, now: dt.datetime) -> Iterator[Step]:
    status, attempt = row["status"], row["attempt"]
    is_effect = (
        row["effect_started_at"] is not None or row["lease_expires_at"] is not None or row["payload"] is not None
    )
    began = "stored with business rows, for a relay" if row["payload"] else "claimed for the first time"
    yield Step(ExecutionStatus.CLAIMED, aware(row["created_at"]), began)
    if attempt > 1 or (attempt == 0 and row["payload"]):
        yield Step("attempt", None, f"attempt {attempt} so far" if attempt else "no attempt so far")
    if row["effect_started_at"] is not None:
        yield Step("started", aware(row["effect_started_at"]), "the call to the other system began")
    error = json_text.error_of(row["error"])
    if error["error_type"] or error["error_message"]:
        said = ": ".join(str(word) for word in (error["error_type"], error["error_message"]) if word)
        yield Step("error", None, said)
    yield from _findings(row["details"])
    until = aware(row["lease_expires_at"])
    if status in (ExecutionStatus.LEASED, ExecutionStatus.IN_DOUBT) and until is not None:
        is_endless = f"{until:%Y-%m-%d}" >= LAST  # "infinity", written by hand
        yield (
            Step("lease", None, "its lease has no end")
            if is_endless
            else Step("lease", until, _lease(row, is_over=until <= now))
        )
    if status == ExecutionStatus.CLAIMED and not is_effect:
        yield Step("error", None, "committed without a result, by a COMMIT that the guard could not see")
    if status in _ENDS:
        yield Step(status, aware(row["completed_at"]), _ENDS[status])


def _findings(details: str | None) -> Iterator[Step]:
    for entry in json_text.history(details):
        if "resolved" in entry:
            finding = str(entry["resolved"])
            said = _FINDINGS.get(finding, finding)
            yield Step("resolved", aware(entry.get("at")), said, str(entry.get("by") or ""), entry.get("evidence"))
        elif "probe" in entry:
            finding = str(entry["probe"])
            yield Step("probed", None, _FINDINGS.get(finding, finding), f"the probe, at attempt {entry.get('attempt')}")
        elif "not_stored" in entry:
            yield Step("error", None, "the call succeeded, and its result could not be stored")
        elif "succeeded" in entry:
            yield Step("error", None, "the call succeeded, and its business writes failed")


def _lease(row: Any, *, is_over: bool) -> str:
    if row["status"] == ExecutionStatus.IN_DOUBT:
        return "in doubt since the lease ended"
    if row["effect_started_at"] is None:
        return (
            "due for its next attempt" if is_over else "the next attempt is due, or the lease of the current one ends"
        )
    return "the lease has ended without an outcome: in doubt" if is_over else "the lease ends"
