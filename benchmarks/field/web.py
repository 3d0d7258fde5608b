"""A library for the header `Idempotency-Key`: each delivery is a POST to an app that it guards, in the same process."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from typing import Any, ClassVar

import httpx
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.orm import Session

from benchmarks.field.adapter import Adapter, Function, Refused


class Amount(BaseModel):
    """The body of a request."""

    amount: int


class WebAdapter(Adapter):
    """The app is that of the library's documentation; its endpoint commits before it returns, unless the library does."""

    not_applicable: ClassVar[dict[str, str]] = {"rolled back": "a request has no transaction of its caller"}

    @abstractmethod
    def make_app(self) -> FastAPI:
        """Return the guarded app, with `POST /payments/{request_id}`."""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self.app = self._await(self._started())

    async def _started(self) -> FastAPI:
        return self.make_app()

    def stop(self) -> None:
        self._await(self.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def close(self) -> None:
        """Close what the library holds."""

    def _await(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result()

    def unguarded(self) -> FastAPI:
        """Return an app whose endpoint owns its transaction."""
        app = FastAPI()

        @app.post("/payments/{request_id}")
        def pay(request_id: str, body: Amount) -> Any:
            with self.sessions.begin() as session:
                return self.work(session, request_id, body.amount)

        return app

    def deliver(self, request_id: str, amount: int) -> Any:
        return self._await(self._post(request_id, amount))

    async def _post(self, request_id: str, amount: int) -> Any:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=100) as client:
            headers = {"Idempotency-Key": request_id}
            answer = await client.post(f"/payments/{request_id}", json={"amount": amount}, headers=headers)
        if answer.is_success:
            return answer.json()
        if answer.status_code < 500:
            raise Refused(str(answer.status_code))
        raise RuntimeError(answer.status_code)

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        raise NotImplementedError

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        raise NotImplementedError
