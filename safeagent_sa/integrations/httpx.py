"""httpx (extra `httpx`): a transport that sends the idempotency key of the effect whose function is running."""

from __future__ import annotations

import httpx

from .._effects.drive import transact, transact_async
from ._outgoing import outgoing


__all__ = ["AsyncEffectTransport", "EffectTransport"]

_HEADER = "Idempotency-Key"


class EffectTransport(httpx.BaseTransport):
    """Adds `Idempotency-Key` to each request that is not a GET; the same on every attempt, and only with the same bytes.

    What is sent is noted in a short transaction before the first attempt sends it. Requests outside of an effect, and other
    bytes or another URL under the same key, raise MisuseError and are not sent; so does a redirect that repeats a POST. A request that has the header already passes as it is.

    Example:
        ```python
        client = httpx.Client(transport=EffectTransport(), base_url="https://api.provider.example")


        def do_charge(effect, amount: int) -> dict[str, str]:
            return client.post("/charges", json={"amount": amount}).raise_for_status().json()


        charge.execute(SessionLocal, "order-42:charge", do_charge, 100, payload={"amount": 100})
        ```
    """

    def __init__(self, transport: httpx.BaseTransport | None = None, *, header: str = _HEADER) -> None:
        """Wrap a transport.

        Args:
            transport: What sends the requests; None for `httpx.HTTPTransport()`.
            header: The provider's name of the header, such as `PayPal-Request-Id`.
        """
        self._transport = httpx.HTTPTransport() if transport is None else transport
        self._header = header

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if self._header not in request.headers:
            found = outgoing(request.method, str(request.url), request.read(), is_async=False)
            if found is not None:
                if found.note is not None:
                    transact(found.factory, found.note)
                    found.noted()
                request = _with(request, self._header, found.key)
        return self._transport.handle_request(request)

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class AsyncEffectTransport(httpx.AsyncBaseTransport):
    """As EffectTransport, for `httpx.AsyncClient` in effects of AsyncExecutionGuard.

    Example:
        ```python
        client = httpx.AsyncClient(transport=AsyncEffectTransport())
        ```
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, *, header: str = _HEADER) -> None:
        """Wrap a transport.

        Args:
            transport: What sends the requests; None for `httpx.AsyncHTTPTransport()`.
            header: The provider's name of the header.
        """
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport
        self._header = header

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if self._header not in request.headers:
            found = outgoing(request.method, str(request.url), await request.aread(), is_async=True)
            if found is not None:
                if found.note is not None:
                    await transact_async(found.factory, found.note)
                    found.noted()
                request = _with(request, self._header, found.key)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


def _with(request: httpx.Request, header: str, key: str) -> httpx.Request:
    headers = [*request.headers.raw, (header.encode(), key.encode())]
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
