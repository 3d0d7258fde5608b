"""The effects that a claim leaves to a relay, as the block of the claim plans them; `_claim.outbox` stores them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import InvalidPayloadError, InvalidRequestIdError
from . import json_text
from .ids import MAX_BYTES, validate_action, validate_key


class PlannedEffect(NamedTuple):
    """An effect that a relay fires after the COMMIT."""

    request_id: str
    action: str
    payload: Any
    text: str

    def __repr__(self) -> str:
        return f"<PlannedEffect {self.request_id!r} {self.action!r}>"  # its payload may be personal data; keep it out of logs


class PlannedEffects:
    """The effects that a new execution leaves to a relay; they commit with your transaction, or none does.

    They are written at the end of the block. After the COMMIT a relay fires them, each as an execution with its own
    request_id, in no particular order.
    """

    def __init__(self, execution: Any) -> None:
        self._execution = execution
        self._planned: dict[str, PlannedEffect] = {}

    def add(self, action: str, payload: Any = None, *, request_id: str | UUID | int | None = None) -> str:
        """Store an effect with the business rows; it commits with your transaction.

        Args:
            action: What is done; the relay has one handler for each action.
            payload: The argument of the handler, as plain JSON values; stored until the effect is done.
            request_id: Names the effect; None to derive it from the execution's own id, the action and a number.

        Returns:
            The request_id of the effect, in the scope of the execution.

        Raises:
            AlreadyCompletedError: This is a replay, or the block has ended.
            InvalidInputError: The action, the payload or the id cannot be stored, or the id was added before.

        Example:
            ```python
            with guard.claim(session, "order:42", action="place_order") as execution:
                if not execution.is_replay:
                    session.add(order)
                    execution.effects.add("email.confirmation", {"to": order.email})
                    execution.complete({"order_id": order.id})
            ```
        """
        self._execution._refuse_after_the_end("effects.add()")  # noqa: SLF001 - a part of the handle
        validate_action(action)
        if request_id is None:
            number = 1 + sum(planned.action == action for planned in self._planned.values())
            request_id = f"{self._execution.request_id}/{action}" + (f"/{number}" if number > 1 else "")
            if len(request_id.encode()) > MAX_BYTES:
                request_id = "sha256:" + hashlib.sha256(request_id.encode()).hexdigest()
        key = validate_key(self._execution.scope, request_id)
        if key.request_id in self._planned:
            message = f"the effect {key.request_id!r} was added before; name each by its own request_id"
            raise InvalidRequestIdError(message)
        try:
            limit = self._execution._max_result_bytes  # noqa: SLF001
            text, stored = json_text.round_trip(payload, max_bytes=limit)
        except json_text.NotStorableError as problem:
            message = f"the payload of the effect {problem}. Nothing was sent to the database; the claim is still open."
            raise InvalidPayloadError(message, path="$") from None
        self._planned[key.request_id] = PlannedEffect(key.request_id, action, stored, text)
        return key.request_id

    def __iter__(self) -> Iterator[PlannedEffect]:
        return iter(self._planned.values())
