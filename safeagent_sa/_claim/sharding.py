"""Which shard of a ShardedSession requests lie on: the same one on every attempt, or each shard would execute them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session, class_mapper, configure_mappers

from .._request.ids import Key
from ..errors import UnsupportedSessionError
from ..models import ExecutionRequestMixin


PAGE = "docs/tenants-by-server.md"


def shard_of(session: Session, model: type[ExecutionRequestMixin], *keys: Key) -> Any:
    """Return the one shard that requests of a ShardedSession lie on, as an engine or a connection.

    The chooser is asked twice, since one that takes turns or draws lots would let a retry run on another shard.

    Raises:
        UnsupportedSessionError: The requests lie on several shards, or on another one when asked again, or there are none:
            such a call would see one shard of several. Nothing was sent.
    """
    if not keys:
        raise UnsupportedSessionError(
            "a ShardedSession chooses a shard by a request, and this call has none, so it would see one shard of several. "
            f"Nothing was sent. Call it for each shard, with sessions of one engine: sessionmaker(engine). See {PAGE}."
        )
    shard, first = _ask(session, model, keys[0]), keys[0]
    for key in (*keys[1:], first):
        if _ask(session, model, key) is not shard:
            raise _elsewhere(key, first)
    return shard


def _ask(session: Any, model: type[ExecutionRequestMixin], key: Key) -> Any:
    configure_mappers()  # an attribute cannot be set before
    mapper = class_mapper(model)
    row = mapper.class_manager.new_instance()  # in no session
    row.scope, row.request_id = key
    try:
        return session.get_bind(mapper=mapper, clause=update(model), instance=row)
    except Exception as error:
        error.add_note(
            f"safeagent_sa: the session's shard_chooser was asked for the shard of a {model.__name__} with scope "
            f"{key.scope!r} and request_id {key.request_id!r}. It must place this row by its scope, as the tenant's business "
            f"rows: {PAGE}."
        )
        raise


def _elsewhere(key: Key, first: Key) -> UnsupportedSessionError:
    if key == first:
        message = (
            f"the session's shard_chooser places request_id {key.request_id!r} (scope {key.scope!r}) on another shard each time, "
            "so a retry would execute it again there. Nothing was sent. Let it choose by the scope, which is the same on "
            f"every attempt; see {PAGE}."
        )
    else:
        message = (
            f"request_id {key.request_id!r} and {first.request_id!r} (scope {key.scope!r}) lie on two shards, and one batch "
            "cannot. Nothing was sent. Claim the ids of each shard in a session of their own, or let shard_chooser choose by "
            f"the scope; see {PAGE}."
        )
    return UnsupportedSessionError(message)
