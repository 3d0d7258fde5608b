"""The ASGI app: routes, permissions, and pages as HTML or JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Connection, Engine, Table, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from .. import __version__
from .._request import json_text
from .._request.ids import Key
from .._settings import ConfiguredGuard
from ..events import Recorder, Revealed, tell
from . import _charts
from ._access import Access, Guarded, Question
from ._database import STATEMENT_TIMEOUT, Database, Part, reason
from ._pages import Page, Pages, Search, Visitor
from ._verdicts import ANSWERS, Form, RefusedError, record


if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_FOLDER = Path(__file__).parent

REFRESH = 4
"""Seconds between two renewals of a page that shows what happens now."""

# In the scope of a request: the way to the first page, and where to go from the address of the mount without its slash.
_HOME, _ENTERED = "safeagent_sa.home", "safeagent_sa.entered"

_PAGES = {
    "": ("overview", "Overview"),
    "in-doubt": ("in_doubt", "In doubt"),
    "outbox": ("outbox", "Outbox"),
    "now": ("now", "Right now"),
    "requests": ("requests", "Requests"),
    "health": ("health", "Health"),
}

Redact: TypeAlias = Callable[[Any], Any]
_Handler: TypeAlias = Callable[[Request, Visitor], Awaitable[Page]]


class Dashboard:
    """An ASGI app over the table of a guard, to be mounted in an app that knows who its users are; it refuses by default.

    It only reads, in separate read-only transactions, by one connection of the engine. A verdict is the only thing that it
    writes, in a separate transaction, where `may_resolve` gives a name.

    Example:
        ```python
        app.mount("/ops", Dashboard(guard, engine, may_look=lambda request: request.user.is_staff))
        ```
    """

    def __init__(
        self,
        guard: ConfiguredGuard,
        engine: Engine | AsyncEngine,
        *,
        may_look: Question | None = None,
        may_resolve: Question | None = None,
        may_reveal: Question | None = None,
        redact: Redact | None = None,
        scopes: Question | None = None,
        recorder: Recorder | None = None,
        allowed_origins: Collection[str] = (),
    ) -> None:
        """Make the app; nothing is sent to the database, and nothing is registered anywhere.

        Args:
            guard: The guard, sync or async, whose table is shown and whose listeners hear who looked at a result.
            engine: The Engine or AsyncEngine of that table, on PostgreSQL or SQLite. A role that may only SELECT is enough for
                all but verdicts.
            may_look: Gets the Starlette request and returns whether the person may see the pages; a function or a coroutine
                function, as all these. None refuses every request.
            may_resolve: Returns the name of a person who may record verdicts, which is stored as `by`; None otherwise.
            may_reveal: Returns the name of a person who may see results and the statements of other sessions; None otherwise.
            redact: Gets a result and returns what may be shown of it.
            scopes: Returns the scopes that the person may see; None for all.
            recorder: The `events.Recorder` among the guard's listeners, for the claims of this process.
            allowed_origins: Origins whose forms are accepted, such as `https://ops.example.org`, where a proxy rewrites Host
                and the browser sends no `Sec-Fetch-Site`.

        Raises:
            TypeError: The engine is none, or the guard is none.
            ValueError: The database is neither PostgreSQL nor SQLite.
        """
        if not isinstance(guard, ConfiguredGuard):
            raise TypeError(f"Dashboard() takes an ExecutionGuard or an AsyncExecutionGuard, not {guard!r}")
        self._database = Database(engine)
        if self._database.dialect.name not in ("postgresql", "sqlite"):
            raise ValueError(f"Dashboard() shows PostgreSQL and SQLite, not {self._database.dialect.name}")
        self._settings = guard._settings  # noqa: SLF001 - the same package
        self._pages = Pages(self._settings, self._database, recorder)
        self._access = Access(
            may_look=may_look,
            may_resolve=may_resolve,
            may_reveal=may_reveal,
            scopes=scopes,
            allowed_origins=allowed_origins,
        )
        self._redact = redact
        self._templates = _environment()
        self._app = Guarded(self._starlette())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as every ASGI app does."""
        await self._app(_placed(scope) if scope["type"] == "http" else scope, receive, send)

    def _starlette(self) -> Starlette:
        pages = self._pages

        def shown(path: str, handler: _Handler, *methods: str) -> Route:
            return Route(path, partial(self._answer, handler), methods=methods or ("GET",))

        def plain(page: Callable[[Visitor], Awaitable[Page]]) -> _Handler:
            return lambda _request, visitor: page(visitor)

        app = Starlette(
            routes=[
                shown("/", plain(pages.overview)),
                shown("/in-doubt", self._in_doubt),
                shown("/outbox", plain(pages.outbox)),
                shown("/now", plain(pages.now)),
                shown("/requests", self._search),
                shown("/request", lambda request, visitor: pages.request(visitor, _key(request))),
                shown("/health", plain(pages.health)),
                shown("/resolve", self._resolve, "POST"),
                shown("/reveal", self._reveal, "POST"),
                Mount("/static", StaticFiles(directory=_FOLDER / "static")),
            ],
            exception_handlers={HTTPException: self._failed},
        )
        app.router.redirect_slashes = False
        return app

    async def _answer(self, handler: _Handler, request: Request) -> Response:
        if not await self._access.may_look(request):
            raise HTTPException(403, "You may not look at this. The app decides it, by may_look=.")
        if request.scope[_ENTERED]:
            return RedirectResponse(request.scope[_ENTERED], 307)
        if request.method not in ("GET", "HEAD") and not self._access.is_from_here(request):
            raise HTTPException(403, "This form was not sent from a page of this dashboard. Nothing was changed.")
        visitor = Visitor(
            await self._access.scopes(request),
            await self._access.resolver(request),
            await self._access.revealer(request),
        )
        try:
            page = await handler(request, visitor)
        except _See as elsewhere:
            return RedirectResponse(str(elsewhere), 303)
        return self._render(request, page, visitor)

    async def _in_doubt(self, request: Request, visitor: Visitor) -> Page:
        page = await self._pages.in_doubt(visitor)
        # Said by this dashboard after a verdict; a link from elsewhere could say anything.
        said = request.query_params.get("said") if self._access.is_from_here(request) else None
        return Page(page.name, page.parts, {"said": said, "refused": None, "form": None})

    async def _search(self, request: Request, visitor: Visitor) -> Page:
        asked = Search(request.query_params.get("q", "").strip(), request.query_params.get("scope") or None)
        page = await self._pages.search(visitor, asked)
        found = page.parts["found"].value if "found" in page.parts else None
        if found and len(found.rows) == 1 and found.rows[0]["request_id"] == asked.text and not _wants_json(request):
            raise _See("request?" + urlencode({"scope": found.rows[0]["scope"], "id": asked.text}))
        return page

    async def _resolve(self, request: Request, visitor: Visitor) -> Page:
        form = Form.of(await request.form())
        if visitor.resolver is None or not visitor.may_see(form.key.scope):
            raise HTTPException(
                403, "You may not record verdicts. The app decides it, by may_resolve=. Nothing was changed."
            )
        try:
            form.verdict()
            said = await self._database.write(
                partial(record, self._settings, self._pages.requests, form, visitor.resolver)
            )
        except (RefusedError, SQLAlchemyError, OSError) as error:
            refused = (
                error
                if isinstance(error, RefusedError)
                else RefusedError(f"There is no connection: {reason(error)}.", 503)
            )
            # What was written stays in the form.
            page = await self._pages.request(visitor, form.key)
            values = {"refused": str(refused), "form": form, "result": None, "said": None}
            return Page(page.name, page.parts, page.more | values, refused.status)
        raise _See("in-doubt?" + urlencode({"said": said}))

    async def _reveal(self, request: Request, visitor: Visitor) -> Page:
        key = _key(request)
        if visitor.revealer is None or not visitor.may_see(key.scope):
            raise HTTPException(403, "You may not see results. The app decides it, by may_reveal=.")
        page = await self._pages.request(visitor, key)
        row = page.parts["request"].value
        answer = (await self._database.read([Part("result", partial(_result, self._settings.model, key))]))["result"]
        if row is None or answer.value is None:
            return page
        event = Revealed(
            scope=key.scope, request_id=key.request_id, action=row["action"], claim_id=uuid.uuid4(), by=visitor.revealer
        )
        tell(self._settings.listeners, event)
        result = self._shown(answer.value)
        return Page(page.name, page.parts, page.more | {"result": result})

    def _shown(self, stored: str) -> str:
        try:
            value = json_text.read(stored)
        except json_text.UnreadableError:
            return "It cannot be read as JSON."
        return json.dumps(value if self._redact is None else self._redact(value), ensure_ascii=False, indent=2)

    async def _failed(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = error.detail if error.status_code != 404 else "There is no such page."  # noqa: PLR2004 - not found
        page = Page("failed", more={"status": error.status_code, "detail": detail}, status=error.status_code)
        return self._render(request, page, Visitor(None, None, None))

    def _render(self, request: Request, page: Page, visitor: Visitor) -> Response:
        if _wants_json(request):
            failed = {name: answer.failed for name, answer in page.parts.items() if answer.failed}
            values = {name: answer.value for name, answer in page.parts.items() if not answer.failed}
            more = {name: value for name, value in page.more.items() if name != "form"}
            return JSONResponse(
                _charts.plain({"page": page.name, "parts": values, "failed": failed} | more), page.status
            )
        html = self._templates.get_template(f"{page.name}.html").render(
            page.parts,
            **({"result": None, "refused": None, "form": None, "said": None} | page.more),
            url=partial(_url, request.scope[_HOME]),
            page=page,
            visitor=visitor,
            pages=_PAGES,
            may_look=page.name != "failed",
        )
        return HTMLResponse(html, page.status)


class _See(Exception):  # noqa: N818 - another page has the answer
    pass


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"big": _charts.big, "size": _charts.size, "ago": _charts.ago}
    found.globals |= {
        "age_bars": _charts.ages,
        "minute_bars": _charts.minutes,
        "answers": ANSWERS,
        "refresh": REFRESH,
        "timeout": STATEMENT_TIMEOUT,
        "version": __version__,
    }
    return found


def _url(home: str, page: str, /, **query: Any) -> str:
    """Return a link that works below every prefix."""
    values = {name: value for name, value in query.items() if value is not None}
    return (home + page or "./") + (f"?{urlencode(values)}" if values else "")


def _placed(scope: Scope) -> Scope:
    """Return a scope that says how links lead to the first page: relative ones work below every prefix.

    Litestar ends each path with a slash, which the address of the browser does not have.
    """
    root = scope.get("root_path", "")
    path = scope["path"].removeprefix(root).rstrip("/")
    address = scope.get("raw_path") or scope["path"].encode()
    depth = path.count("/") - (not address.endswith(b"/"))
    entered = address.rpartition(b"/")[2].decode() + "/" if depth < 0 else None
    return dict(scope) | {"path": root + (path or "/"), _HOME: "../" * depth, _ENTERED: entered}


def _key(request: Request) -> Key:
    return Key(request.query_params.get("scope", ""), request.query_params.get("id", ""))


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _result(model: Any, key: Key, connection: Connection) -> str | None:
    table: Table = model.__table__
    query = select(table.c.result).where(table.c.scope == key.scope, table.c.request_id == key.request_id)
    found: str | None = connection.scalar(query)
    return found
