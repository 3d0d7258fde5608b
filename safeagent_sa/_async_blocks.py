"""Synchronous blocks over an AsyncSession, and the AsyncSession itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

from .errors import UnsupportedSessionError


_ValueT = TypeVar("_ValueT")


@asynccontextmanager
async def over(session: AsyncSession, block: AbstractContextManager[_ValueT]) -> AsyncGenerator[_ValueT]:
    """Enter and leave a synchronous block where its database calls can be awaited."""
    value = await session.run_sync(lambda _: block.__enter__())
    try:
        yield value
    except BaseException as error:
        left = (type(error), error, error.__traceback__)
        # A block without a savepoint sends nothing here, so that a cancelled task is not held up.
        if not await session.run_sync(lambda _: block.__exit__(*left)):
            raise
    else:
        await session.run_sync(lambda _: block.__exit__(None, None, None))


def plain_session(session: object) -> AsyncSession:
    """Return the AsyncSession itself, or raise UnsupportedSessionError."""
    found = session() if isinstance(session, async_scoped_session) else session
    if isinstance(found, AsyncSession):
        return found
    message = (
        f"AsyncExecutionGuard needs a sqlalchemy.ext.asyncio.AsyncSession, not {type(session).__name__}. For a "
        "synchronous Session use safeagent_sa.ExecutionGuard, which has the same verbs."
    )
    raise UnsupportedSessionError(message)
