"""What is on each page: which parts it reads, and for how long their answers are shared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table

from .._inspection import estimates
from .._inspection.health import examine
from .._request.ids import Key
from .._settings import Settings
from ..events import Recorder
from . import _server
from ._database import Answer, Database, Part
from ._reads import Requests, Scopes


# Seconds. Within one interval of the refresh, all tabs together cost as much as one.
_SHARED = 1.5
_ESTIMATES_SHARED = 60.0
_FINDINGS_SHARED = 30.0

_FOUND = 50


@dataclass(frozen=True)
class Visitor:
    """Who looks: what the app said about the person.

    Attributes:
        scopes: The scopes that the person may see; None for all.
        resolver: The name to record with a verdict, or None.
        revealer: The name of the person who may see results, or None.
    """

    scopes: Scopes
    resolver: str | None
    revealer: str | None

    def may_see(self, scope: str) -> bool:
        """Return whether the person may see the requests of a scope."""
        return self.scopes is None or scope in self.scopes


@dataclass(frozen=True)
class Page:
    """A page, before it is HTML or JSON.

    Attributes:
        name: The name of its template.
        parts: What was read, or why it could not be.
        more: Further values, plain JSON.
        status: The status of the HTTP answer.
        is_live: Whether it is renewed every few seconds.
    """

    name: str
    parts: dict[str, Answer] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    is_live: bool = False


class Search(NamedTuple):
    """What a person looks for: the beginning of an id, in one scope or in all."""

    text: str
    scope: str | None


class Pages:
    """The pages of one guard's table."""

    def __init__(self, settings: Settings, database: Database, recorder: Recorder | None) -> None:
        """Keep what is read, and by what; nothing is sent."""
        model: Any = settings.model
        self._model: Any = model
        self._table: Table = model.__table__
        self.requests = Requests(self._table)
        self._database = database
        self._recorder = recorder
        self._rates = _server.Rates()

    async def overview(self, visitor: Visitor) -> Page:
        """Is anything in doubt, is the relay late, who holds what, how much is done, how large is it all."""
        scopes = visitor.scopes
        parts = await self._database.read(
            [
                *(self._listing(name, visitor) for name in ("in_doubt", "dead", "due", "running")),
                self._locks(),
                Part("storage", self._storage, _SHARED),
                Part("ages", partial(_ages, self._table), _ESTIMATES_SHARED),
                Part("latest", partial(self.requests.latest, scopes, 10), _SHARED, scopes),
            ]
        )
        return Page("overview", _seen_by(visitor, parts), {"process": self._process(visitor)}, is_live=True)

    async def in_doubt(self, visitor: Visitor) -> Page:
        """The requests in doubt, for their verdicts."""
        return Page("in_doubt", await self._database.read([self._listing("in_doubt", visitor)]))

    async def outbox(self, visitor: Visitor) -> Page:
        """Effects that are due or wait, and dead letters."""
        lists = [self._listing(name, visitor) for name in ("dead", "due", "scheduled", "running")]
        return Page("outbox", await self._database.read(lists), is_live=True)

    async def now(self, visitor: Visitor) -> Page:
        """Who holds a claim, and who waits for it."""
        parts = await self._database.read([self._locks()])
        return Page("now", _seen_by(visitor, parts), {"process": self._process(visitor)}, is_live=True)

    async def search(self, visitor: Visitor, search: Search) -> Page:
        """Requests by the beginning of their id; without one, the newest."""
        more = {"q": search.text, "scope": search.scope or ""}
        if not search.text:
            scopes = (
                visitor.scopes
                if search.scope is None
                else frozenset({search.scope} if visitor.may_see(search.scope) else ())
            )
            latest = Part("latest", partial(self.requests.latest, scopes, 40), _SHARED, (scopes, 40))
            return Page("requests", await self._database.read([latest]), more)
        find = partial(self.requests.find, search.text, search.scope, visitor.scopes, _FOUND)
        return Page("requests", await self._database.read([Part("found", find)]), more)

    async def request(self, visitor: Visitor, key: Key) -> Page:
        """One request: its timeline, and who holds it now."""
        more = {"scope": key.scope, "id": key.request_id}
        if not visitor.may_see(key.scope):
            return Page(
                "request", {"request": Answer(None), "locks": Answer({"groups": None, "may_see": True})}, more, 404
            )
        parts = [Part("request", partial(self.requests.one, key)), self._locks(key)]
        found = _seen_by(visitor, await self._database.read(parts), key)
        is_missing = found["request"] == Answer(None)
        return Page("request", found, more, 404 if is_missing else 200)

    async def health(self, _visitor: Visitor) -> Page:
        """The findings of the doctor."""
        findings = Part("findings", self._findings, _FINDINGS_SHARED)
        return Page("health", await self._database.read([findings]))

    def _listing(self, name: str, visitor: Visitor) -> Part:
        read: Callable[..., Any] = getattr(self.requests, name)
        return Part(name, partial(read, visitor.scopes), _SHARED, visitor.scopes)

    def _locks(self, key: Key | None = None) -> Part:
        return Part("locks", partial(self._read_locks, key), 0.0 if key else _SHARED, key)

    def _read_locks(self, key: Key | None, connection: Connection) -> dict[str, Any]:
        names: list[tuple[str, str]] = [key] if key else []
        if self._recorder is not None:
            names += [(scope, request_id) for scope, request_id, _ in self._recorder.open_claims()]
            names += [(scope, request_id) for scope, request_id, _ in self._recorder.hottest(100)]
        return _server.locks(self._table, names, connection)

    def _storage(self, connection: Connection) -> dict[str, Any]:
        found = _server.storage(self._table, connection)
        return found | {"rates": self._rates.add(found)}

    def _findings(self, connection: Connection) -> list[dict[str, str]]:
        return [dataclasses.asdict(finding) for finding in examine(connection, self._model)]

    def _process(self, visitor: Visitor) -> dict[str, Any] | None:
        if self._recorder is None:
            return None
        hottest = [each for each in self._recorder.hottest(50) if visitor.may_see(each[0])]
        return {"minutes": self._recorder.minutes(), "hottest": hottest[:8]}


def _ages(table: Table, connection: Connection) -> estimates.Ages:
    return estimates.ages(connection, table)


def _seen_by(visitor: Visitor, parts: dict[str, Answer], key: Key | None = None) -> dict[str, Answer]:
    """Return the parts without the locks of other scopes, and without statements that a person may not see."""
    answer = parts["locks"]
    if answer.failed or answer.value["groups"] is None:
        return parts
    groups = [
        group
        for group in answer.value["groups"]
        if (visitor.scopes is None or (group["scope"] is not None and visitor.may_see(group["scope"])))
        and (key is None or (group["scope"], group["request_id"]) == key)
    ]
    if visitor.revealer is None:
        groups = [
            group | {"holder": _quiet(group["holder"]), "waiters": [_quiet(waiter) for waiter in group["waiters"]]}
            for group in groups
        ]
    return parts | {"locks": Answer(answer.value | {"groups": groups})}


def _quiet(session: dict[str, Any] | None) -> dict[str, Any] | None:
    # A statement may have values in its text.
    return None if session is None else session | {"query": None}
