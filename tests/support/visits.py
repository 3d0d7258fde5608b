"""Visits an ASGI app as a browser or a script does, without a network: all requests of a test in one event loop."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import httpx


SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


class Visits:
    """A browser at one address of an app."""

    def __init__(self, app: Any, at: str = "/ops", host: str = "http://ops.example") -> None:
        self.app, self.at, self.host = app, at, host
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        return self.run(self._send("GET", path, **options))

    def json(self, path: str = "/") -> Any:
        return self.get(path, headers={"accept": "application/json"}).json()

    def post(self, path: str, data: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        return self.run(self._send("POST", path, data=data or {}, **({"headers": SAME_ORIGIN} | options)))

    def at_once(self, paths: list[str]) -> list[httpx.Response]:
        """Visit several pages at the same time."""

        async def all_of_them() -> list[httpx.Response]:
            return await asyncio.gather(*(self._send("GET", path) for path in paths))

        return self.run(all_of_them())

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url=self.host) as client:
            return await client.request(method, self.at + path, **options)
