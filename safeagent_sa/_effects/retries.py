"""The errors of a call that say: nothing happened, call again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias


Kinds: TypeAlias = tuple[type[Exception], ...]
RetryOn: TypeAlias = type[Exception] | Iterable[type[Exception]]


@dataclass(frozen=True)
class Retries:
    """The errors of one effect.

    Attributes:
        on: What users name in `retry_on`: the request waits for its next attempt.
        put_off_by: What a framework raises before anything is sent, to make the call later: the request is forgotten.
    """

    on: Kinds
    put_off_by: Kinds = ()

    @classmethod
    def of(cls, retry_on: RetryOn) -> Self:
        """Return those of `retry_on`, checked now: a TypeError in the middle of a call would leave the effect in doubt."""
        kinds: tuple[Any, ...] = tuple(retry_on) if isinstance(retry_on, Iterable) else (retry_on,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"retry_on takes types of exceptions, not {kind!r}")
        return cls(kinds)

    @property
    def kinds(self) -> Kinds:
        """Both."""
        return (*self.put_off_by, *self.on)
