"""What a scenario needs of a library, and the ways in which a library may answer."""

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
    """The library answered, in its own way of saying so, that it has no success to report."""


@dataclass(frozen=True)
class Answer:
    """What one delivery got: `kind` is "success", "refusal" (one that the library documents) or "error"."""

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
        url: PostgreSQL, for what the library stores on connections of its own.
        business_url: The same database, maybe through a proxy, for what commits the business row.
        lease: Seconds after which an abandoned claim may be taken over, where the library has such a thing.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    """Its name on PyPI, by which its version is read."""
    documentation: ClassVar[str]
    """The page that the adapter follows."""
    remark: ClassVar[str] = ""
    """What a reader of the table should know about how it is used."""
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    """The exceptions by which it refuses a delivery."""
    has_lease: ClassVar[bool] = False
    returns_value: ClassVar[bool] = True
    """Its answer is the value of the business code."""
    not_applicable: ClassVar[dict[str, str]] = {}
    """Names of scenarios that make no sense for it, and why."""

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
        """Create what the library stores, where it does not do so itself."""

    @classmethod  # noqa: B027
    def clean_up(cls, url: sa.URL) -> None:
        """Remove what the library keeps outside of the database."""

    def deliver(self, request_id: str, amount: int) -> Any:
        """Deliver a request and return its answer, or raise."""

        def pay(request_id: str, amount: int) -> Any:
            with self.sessions.begin() as session:
                return self.work(session, request_id, amount)

        return self.guard(pay, request_id, amount)

    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any:
        """Deliver a request inside of a transaction that belongs to the caller, who ends it."""

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
        """Deliver once and say what came of it."""
        try:
            return Answer("success", self.deliver(request_id, amount))
        except Refused as refusal:
            return Answer("refusal", name=str(refusal))
        except self.refusals as refusal:
            return Answer("refusal", name=type(refusal).__name__)
        except Exception as error:  # noqa: BLE001
            return Answer("error", name=type(error).__name__)

    def redeliver(self, request_id: str, amount: int) -> Answer:
        """Deliver as a patient client does: again and again, until success or well after any lease has ended."""
        deadline = time.monotonic() + (3 * self.lease if self.has_lease else 0)
        never = threading.Event()
        while not (answer := self.attempt(request_id, amount)).is_success and time.monotonic() < deadline:
            never.wait(PAUSE)  # a lease is made of time; nothing could be waited for
        return answer


class SqliteAdapter(Adapter):
    """A library that keeps its records in a SQLite file; the payments are on PostgreSQL all the same."""

    @classmethod
    def file(cls, url: sa.URL) -> Path:
        return Path(tempfile.gettempdir()) / f"{url.database}.sqlite"

    @classmethod
    def clean_up(cls, url: sa.URL) -> None:
        for file in cls.file(url).parent.glob(f"{cls.file(url).name}*"):
            file.unlink()


class TransactionAdapter(Adapter):
    """A library that works inside of the caller's transaction."""

    def deliver(self, request_id: str, amount: int) -> Any:
        with self.sessions.begin() as session:
            return self.deliver_in(session, request_id, amount)

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        raise NotImplementedError

    @abstractmethod
    def deliver_in(self, session: Session, request_id: str, amount: int) -> Any: ...
