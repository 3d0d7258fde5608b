"""An inbox for webhooks: an event, what its handlers write and its receipt commit together, and the provider gets its answer.

Providers deliver at least once and in no order. The inbox verifies the raw body, runs the handlers of the event's type once
for each id, and answers so that the provider stops, or comes again. Stripe, GitHub and Standard Webhooks are here;
any object with `name` and `verify` is a provider.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, TypeVar

from .._transaction.run import AsyncSessionFactory, SessionFactory
from ..errors import (
    ExecutionInProgressError,
    InvalidInputError,
    InvalidSignatureError,
    ReceiptExpiredError,
    ReceiptUnreadableError,
    RequestConflictError,
    RequestRefusedError,
    SafeAgentError,
)
from ._webhook_handlers import copy_for, ended, ended_async, refuse_kind
from ._webhook_providers import Delivery, GitHub, StandardWebhooks, Stripe
from .http import HttpResponse


__all__ = ["AsyncWebhookInbox", "Delivery", "GitHub", "Provider", "StandardWebhooks", "Stripe", "WebhookInbox"]

_log = logging.getLogger("safeagent_sa")
_HandlerT = TypeVar("_HandlerT", bound=Callable[..., Any])


class Provider(Protocol):
    """What verifies the webhooks of one provider.

    Attributes:
        name: Names the provider; part of the scope of its events.
    """

    name: str

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        """Return the event of a webhook that the provider has signed.

        Args:
            body: The raw body.
            headers: The headers of the request.

        Returns:
            The event.

        Raises:
            InvalidSignatureError: The signature is missing, wrong or too old.
            InvalidDeliveryError: The body holds no event.
        """
        ...


class _Inbox:
    """The handlers of an inbox, and its answers."""

    _is_async: ClassVar[bool]

    def __init__(self, guard: Any, session_factory: Any, *, wait_timeout: float = 5.0) -> None:
        """Make an inbox; nothing is sent to a database.

        Args:
            guard: An ExecutionGuard, for AsyncWebhookInbox an AsyncExecutionGuard.
            session_factory: Makes the session of each event, such as `sessionmaker(engine)`.
            wait_timeout: Seconds to wait for the same event on another connection, before the provider is asked to come again.
        """
        self._guard, self._factory, self._wait_timeout = guard, session_factory, wait_timeout
        self._handlers: list[tuple[str, str, Callable[..., Any]]] = []

    def on(self, provider: Provider, *types: str) -> Callable[[_HandlerT], _HandlerT]:
        """Return a decorator: the function handles events of these types; its writes commit with the receipt of the event.

        All handlers of an event run in one transaction, in the order in which they were added. A handler gets the session and its own
        Delivery, and does not commit; if one raises, all of them roll back, and the provider comes again. One that
        raises Refusal ends the event: what was written before stays, the later handlers do not run, and the provider gets 200.

        Args:
            provider: The provider.
            types: Types of events, such as `"invoice.paid"`; `"*"` for all of them.

        Returns:
            The decorator.

        Raises:
            ValueError: There is no type.
            UnsupportedFunctionError: The function is of the wrong kind, sync or async, for this inbox.

        Example:
            ```python
            @inbox.on(stripe, "invoice.paid")
            def paid(session: Session, delivery: Delivery) -> None:
                session.add(Paid(invoice=delivery.payload["data"]["object"]["id"]))
            ```
        """
        if not types:
            raise ValueError('on() takes the types of events to handle, or "*" for all of them')

        def add(handler: _HandlerT) -> _HandlerT:
            refuse_kind(type(self).__name__, handler, is_async=self._is_async)
            self._handlers += [(provider.name, kind, handler) for kind in types]
            return handler

        return add

    def _handlers_of(self, provider: Provider, delivery: Delivery) -> list[Callable[..., Any]]:
        wanted = (delivery.type, "*")
        return [handler for name, kind, handler in self._handlers if name == provider.name and kind in wanted]

    def _options(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "action": delivery.type,
            "payload": delivery.fingerprint,
            "scope": f"webhook:{delivery.source}",
            "wait_timeout": self._wait_timeout,
        }


class WebhookInbox(_Inbox):
    """Receives webhooks, over a sync session factory; each event is one transaction, which the inbox commits.

    Example:
        ```python
        inbox = WebhookInbox(guard, SessionLocal)
        stripe = Stripe(os.environ["STRIPE_WEBHOOK_SECRET"])
        ```
    """

    _is_async = False
    _factory: SessionFactory

    def receive(self, provider: Provider, body: bytes, headers: Mapping[str, str]) -> HttpResponse:
        """Verify a webhook and run its handlers once, in one transaction that commits before this returns.

        Args:
            provider: The provider.
            body: The raw body: verifying JSON that was parsed and written again fails.
            headers: The headers of the request, of any framework, or a dict.

        Returns:
            The answer for the provider: 200 where the event is handled or refused, now or before, or has no handler; 401, 400 and 422 where no
            retry helps; 503 with `Retry-After` while the same event is handled elsewhere.

        Raises:
            Exception: What a handler or the database raises; answer 500, so that the provider comes again.

        Example:
            ```python
            @app.post("/webhooks/stripe")
            def receive_stripe():
                answer = inbox.receive(stripe, request.get_data(), request.headers)
                return answer.body, answer.status, answer.headers
            ```
        """
        handling = _Handling(self, provider)
        try:
            delivery = handling.verify(body, headers)
            if handling.handlers:
                self._guard.run_transaction(self._factory, delivery.id, handling.handle, **self._options(delivery))
        except SafeAgentError as error:
            return handling.answer_to(error)
        return handling.answer


class AsyncWebhookInbox(_Inbox):
    """As WebhookInbox, over an `async_sessionmaker`; its handlers are coroutine functions.

    Example:
        ```python
        inbox = AsyncWebhookInbox(async_guard, AsyncSessionLocal)
        ```
    """

    _is_async = True
    _factory: AsyncSessionFactory

    async def receive(self, provider: Provider, body: bytes, headers: Mapping[str, str]) -> HttpResponse:
        """Verify a webhook and run its handlers once, in one transaction that commits before this returns.

        Args:
            provider: As in `WebhookInbox.receive`.
            body: As in `WebhookInbox.receive`.
            headers: As in `WebhookInbox.receive`.

        Returns:
            The answer for the provider, as from `WebhookInbox.receive`.

        Raises:
            Exception: What a handler or the database raises; answer 500, so that the provider comes again.

        Example:
            ```python
            @app.post("/webhooks/stripe")
            async def receive_stripe(request: Request) -> Response:
                answer = await inbox.receive(stripe, await request.body(), request.headers)
                return Response(answer.body, answer.status, dict(answer.headers))
            ```
        """
        handling = _Handling(self, provider)
        try:
            delivery = handling.verify(body, headers)
            if handling.handlers:
                options = self._options(delivery)
                await self._guard.run_transaction(self._factory, delivery.id, handling.handle_async, **options)
        except SafeAgentError as error:
            return handling.answer_to(error)
        return handling.answer


class _Handling:
    """One webhook: its event, its handlers, and the answer."""

    def __init__(self, inbox: _Inbox, provider: Provider) -> None:
        self._inbox, self._provider = inbox, provider
        self._raised: SafeAgentError | None = None

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        """Return the event, and find its handlers."""
        self._delivery = self._provider.verify(body, headers)
        self.handlers = self._inbox._handlers_of(self._provider, self._delivery)  # noqa: SLF001 - one mechanism
        return self._delivery

    def handle(self, session: Any) -> None:
        """Run the handlers."""
        with self._noting_errors():
            for handler in self.handlers:
                ended(handler, handler(session, copy_for(self._delivery)))

    async def handle_async(self, session: Any) -> None:
        """Run the handlers, which are coroutine functions."""
        with self._noting_errors():
            for handler in self.handlers:
                await ended_async(handler, handler(session, copy_for(self._delivery)))

    @contextmanager
    def _noting_errors(self) -> Generator[None]:
        """Keep an error of the guard that a handler has raised: it says nothing about this event."""
        try:
            yield
        except SafeAgentError as error:
            self._raised = error
            raise

    @property
    def answer(self) -> HttpResponse:
        """The answer to an event that is handled, or has no handler."""
        return _text(200, "handled" if self.handlers else "ignored: no handler for this type of event")

    def answer_to(self, error: SafeAgentError) -> HttpResponse:
        """Return the answer to an error of the guard or of the provider; raise what belongs to the app."""
        if error is self._raised:
            raise error
        if isinstance(error, ExecutionInProgressError):
            later = str(max(1, math.ceil(error.retry_after)))
            return _text(503, "this event is being handled; come again", ("retry-after", later))
        if isinstance(error, (ReceiptExpiredError, ReceiptUnreadableError)):
            return _text(200, "handled before")
        if isinstance(error, RequestRefusedError):
            return _text(200, "refused by a handler")  # stored: every delivery would end like this one
        for kind, status in ((RequestConflictError, 422), (InvalidSignatureError, 401), (InvalidInputError, 400)):
            if isinstance(error, kind):
                _log.warning("webhook of %s answered with %s: %s", self._provider.name, status, error)
                return _text(status, "this id was used for another event" if status == 422 else str(error))  # noqa: PLR2004
        raise error


def _text(status: int, text: str, *headers: tuple[str, str]) -> HttpResponse:
    return HttpResponse(status, (("content-type", "text/plain; charset=utf-8"), *headers), text.encode())
