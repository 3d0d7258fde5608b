"""A completion whose results are refusals, or some of them: one extra statement at COMMIT, which ordinary results do not pay for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from .._dialects import NewClaim
from ..execution import ExecutionStatus


@dataclass(frozen=True, slots=True)
class RefusalCompletion:
    """A completion, and which of its results are refusals."""

    completion: Any
    """The completion of a claim, or of a batch."""
    row: NewClaim
    """One of its rows, whose scope and token all of them have."""
    request_ids: Sequence[str]

    def write(self, connection: Connection) -> bool:
        """Write the results, then turn the refusals among them into what they are."""
        if not self.completion.write(connection):
            return False
        scope, token, proof = self.row.scope, self.row.token, self.completion.proof
        count: int = self.completion.protocol.refuse(connection, scope, token, proof, self.request_ids)
        return count == len(self.request_ids)

    def is_written(self, connection: Connection) -> bool:
        """Return whether this very transaction has written them."""
        if not self.completion.is_written(connection):
            return False
        stored = self.completion.protocol.find_many(connection, self.row.scope, list(self.request_ids))
        return all(row.status == ExecutionStatus.REFUSED for row in stored.values())

    def with_commit(self, connection: Connection, claim: Any) -> None:
        """Return None: separate statements write a refusal."""
