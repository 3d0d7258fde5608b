"""Refusals: what a function raises to give one, how it is stored, and the error that every retry gets."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import InvalidResultError, RequestRefusedError
from . import json_text
from .ids import Key
from .results import CLAIM_IS_OPEN


_MAX_TYPE_BYTES = 255


class Refusal(Exception):  # noqa: N818 - no error: an answer, which is stored with the rows that the function has written
    """Raised by a function that a guard runs: its answer is a refusal, stored with its rows; both commit, or neither does.

    `execute`, `run_transaction` and `idempotent` catch it, and the caller and every retry get RequestRefusedError. In
    the block of a claim call `execution.refuse()` instead: there it is an exception like any other.

    Example:
        ```python
        def pay(session: Session, card: Card, amount: int) -> dict[str, str]:
            if amount > card.limit:
                session.add(DeclinedPayment(card_id=card.id, amount=amount))
                raise Refusal({"limit": card.limit}, type="card_declined")
            ...
        ```
    """

    def __init__(self, data: Any = None, *, type: str) -> None:  # noqa: A002 - the word of problem details (RFC 9457)
        """Keep the answer.

        Args:
            data: What the caller and every retry get, as plain JSON values.
            type: What kind of refusal it is, such as `"card_declined"`.
        """
        super().__init__(f"refused ({type})")
        self.data = data
        self.type = type

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Refusal, self.data, type=self.type), ()


def encode(type_: Any, data: Any, *, max_bytes: int) -> str:
    """Return the text to store, or raise InvalidResultError."""
    if not (isinstance(type_, str) and 0 < len(type_.encode("utf-8", "replace")) <= _MAX_TYPE_BYTES):
        raise InvalidResultError(f"the type of a refusal is a text of 1 to {_MAX_TYPE_BYTES} bytes. {CLAIM_IS_OPEN}")
    try:
        return json_text.encode({"type": type_, "data": data}, max_bytes=max_bytes)
    except json_text.NotStorableError as problem:
        raise InvalidResultError(f"the refusal {problem}; its data is plain JSON. {CLAIM_IS_OPEN}") from None


def refused(key: Key, stored: Any, *, is_replay: bool) -> RequestRefusedError:
    """Return the error for a refusal, given as the stored value."""
    where = f" in scope {key.scope!r}" if key.scope else ""
    message = (
        f"request_id {key.request_id!r}{where} was refused ({stored['type']}). This is its answer on every retry; a new attempt "
        "is a new request_id"
    )
    return RequestRefusedError(
        message,
        scope=key.scope,
        request_id=key.request_id,
        type=stored["type"],
        data=stored["data"],
        is_replay=is_replay,
    )
