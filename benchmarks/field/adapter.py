"""What a scenario needs from a library, and the ways in which a library may answer."""

from __future__ import annotations

import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.field.business import Work


Function = Callable[[str, int], Any]
PAUSE = 0.1  # between two deliveries while a lease runs


class Refused(Exception):  # noqa: N818
    """The library has answered in its own way that this is no success."""


@dataclass(frozen=True)
class Answer:
    """The answer to one delivery: `kind` is "success", "refusal" (a documented one) or "error"."""

    kind: str
    receipt: Any = None
    name: str = ""

    @property
    def is_success(self) -> bool:
        return self.kind == "success"

    def __str__(self) -> str:
        return "success" if self.is_success else self.name


class Adapter(ABC):
    """One library, used as its documentation says.

    Args:
        work: The business code.
        url: PostgreSQL, for the library's separate connections.
        business_url: The same database, possibly through a proxy, for the connection that commits the business row.
        lease: Seconds after which another caller may take over an abandoned claim, if the library has leases.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    """Its name on PyPI."""
    documentation: ClassVar[str]
    """The page that the adapter follows."""
    remark: ClassVar[str] = ""
    """What readers of the table should know about its use."""
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    """The exceptions with which it refuses a delivery."""
    has_lease: ClassVar[bool] = False
    returns_value: ClassVar[bool] = True
    """Whether its answer is the value of the business code."""
    not_applicable: ClassVar[dict[str, str]] = {}
    """Scenarios that make no sense for it, and why."""

    def __init__(self, work: Work, url: sa.URL, business_url: sa.URL, lease: float) -> None:
        self.work = work
        self.url = url
        self.dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.lease = lease
        self.engine = sa.create_engine(business_url, pool_size=10)
        self.sessions = sessionmaker(self.engine)
        self.start()

    def start(self) -> None:  # noqa: B027
        """Do what an app does at its start."""

    def stop(self) -> None:  # noqa: B027
        """Do what an app does at its end."""

    @classmethod  # noqa: B027
    def create_tables(cls, url: sa.URL) -> None:
        """Create the library's tables, if it does not do that on its own."""

    @classmethod  # noqa: B027
    def clean_up(cls, url: sa.URL) -> None:
        """Remove what the library keeps outside the database."""

    def deliver(self, request_id: str, amount: int) -> Any:
        """Deliver a request and return its answer, or raise."""

        def pay(request_id: str, amount: int) -> Any:
            with self.sessions.begin() as session:
                return self.work(session, request_id, amount)

        return self.guard(pay, request_id, amount)

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        """Deliver a request inside the caller's transaction, which the caller ends."""

        def pay(request_id: str, amount: int) -> Any:
            return self.work(session, request_id, amount)

        return self.guard(pay, request_id, amount)

    @abstractmethod
    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        """Call the function under the library's guard."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.engine.dispose()

    def attempt(self, request_id: str, amount: int) -> Answer:
        """Deliver once and return the answer."""
        try:
            return Answer("success", self.deliver(request_id, amount))
        except Refused as refusal:
            return Answer("refusal", name=str(refusal))
        except self.refusals as refusal:
            return Answer("refusal", name=type(refusal).__name__)
        except Exception as error:  # noqa: BLE001
            return Answer("error", name=type(error).__name__)

    def redeliver(self, request_id: str, amount: int) -> Answer:
        """Deliver like a patient client: again and again, until success or until well after the lease has ended."""
        deadline = time.monotonic() + (3 * self.lease if self.has_lease else 0)
        never = threading.Event()
        while not (answer := self.attempt(request_id, amount)).is_success and time.monotonic() < deadline:
            never.wait(PAUSE)  # a lease is a span of time, so there is no event to wait for
        return answer


class SqliteAdapter(Adapter):
    """A library that keeps its records in a SQLite file; the payments are on PostgreSQL nevertheless."""

    @classmethod
    def file(cls, url: sa.URL) -> Path:
        return Path(tempfile.gettempdir()) / f"{url.database}.sqlite"

    @classmethod
    def clean_up(cls, url: sa.URL) -> None:
        for file in cls.file(url).parent.glob(f"{cls.file(url).name}*"):
            file.unlink()


class TransactionAdapter(Adapter):
    """A library that works inside the caller's transaction."""

    def deliver(self, request_id: str, amount: int) -> Any:
        with self.sessions.begin() as session:
            return self.deliver_in(session, request_id, amount)

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        raise NotImplementedError

    @abstractmethod
    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any: ...
