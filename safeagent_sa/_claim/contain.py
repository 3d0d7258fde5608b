"""Sessions for business code that commits, inside a transaction that it must not end.

The code gets a second session of its factory, joined to the connection of the session that holds the claim: what it begins is
a savepoint, so its `commit()` keeps the work for the outer transaction, and its `rollback()` undoes what it did since.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from .._settings import Settings
from .._transaction.run import AsyncSessionFactory, SessionFactory
from ..errors import UnsupportedSessionError
from . import binding


if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


@contextmanager
def contained(session_factory: SessionFactory, outer: Session, settings: Settings) -> Generator[Session]:
    """Give a session inside the transaction of another one; what it leaves uncommitted is committed to that at a good end."""
    with session_factory() as service:
        _join(service, binding.reach(outer, settings)[0])
        yield service
        if service.in_transaction():
            service.commit()


@asynccontextmanager
async def contained_async(
    session_factory: AsyncSessionFactory, outer: AsyncSession, settings: Settings
) -> AsyncGenerator[AsyncSession]:
    """Do as `contained` does, for AsyncSession."""
    async with session_factory() as service:
        service.bind = await outer.connection(bind_arguments=binding.arguments(outer.sync_session, settings))
        _join(service.sync_session, await outer.run_sync(lambda session: binding.reach(session, settings)[0]))
        yield service
        if service.in_transaction():
            await service.commit()


def _join(service: Session, connection: Connection) -> None:
    if service.twophase:
        raise UnsupportedSessionError(
            "contain_commits=True gives the function a session that works in savepoints, and the factory makes sessions "
            "with twophase=True, which cannot. Give a factory without it."
        )
    service.bind, service.join_transaction_mode = connection, "create_savepoint"

    def refuse_another(_session: Session, _transaction: SessionTransaction, begun: Connection) -> None:
        if begun is not connection:
            raise UnsupportedSessionError(
                "contain_commits=True holds a call in one transaction, and the function's session has chosen another "
                f"connection, to {begun.engine.url!r}: a commit there would not be contained. Nothing was sent over it. "
                "Give a factory whose sessions have one engine: no binds=, and no get_bind() that routes."
            )

    event.listen(service, "after_begin", refuse_another)
