"""requests (extra `requests`): an adapter that sends the idempotency key of the effect whose function is running."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from .._effects.drive import transact
from ..errors import MisuseError
from ._outgoing import outgoing


__all__ = ["EffectAdapter"]


class EffectAdapter(HTTPAdapter):
    """Adds `Idempotency-Key` to each request that is not a GET; the same on every attempt, and only with the same bytes.

    What is sent is noted in a short transaction before the first attempt sends it. Requests outside of an effect, and other
    bytes or another URL under the same key, raise MisuseError and are not sent. A request that has the header already passes as it is.

    Example:
        ```python
        client = requests.Session()
        client.mount("https://api.provider.example", EffectAdapter())


        def do_charge(effect, amount: int) -> dict[str, str]:
            return client.post("https://api.provider.example/charges", json={"amount": amount}, timeout=30).json()


        charge.execute(SessionLocal, "order-42:charge", do_charge, 100, payload={"amount": 100})
        ```
    """

    def __init__(self, *, header: str = "Idempotency-Key", **options: Any) -> None:
        """Make an adapter.

        Args:
            header: The provider's name of the header, such as `PayPal-Request-Id`.
            options: Those of `requests.adapters.HTTPAdapter`.
        """
        super().__init__(**options)
        self._header = header

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request."""
        assert request.headers is not None
        if self._header not in request.headers:
            found = outgoing(request.method or "GET", request.url or "", _content(request.body), is_async=False)
            if found is not None:
                if found.note is not None:
                    transact(found.factory, found.note)
                    found.noted()
                request = request.copy()
                assert request.headers is not None
                request.headers[self._header] = found.key
        return super().send(request, *args, **options)


def _content(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes):
        return body
    raise MisuseError(
        f"the content of a request is a {type(body).__name__}, which can be read once, so that it cannot be compared with that of "
        "another attempt. Nothing was sent. Give bytes."
    )
