"""The savepoints that are open in a guarded transaction, and what the end of one does to its claims.

Each claim knows how many savepoints are around it, and how many were around the end of its block. SQLAlchemy's savepoints
are known, and those that were written as text since the first claim. Where one was made unseen, the claims' rows decide.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection

from .open_claim import OpenClaim, is_there


class Savepoints:
    """The open savepoints of one transaction, by name, outermost first."""

    def __init__(self, connection: Connection, claims: dict[uuid.UUID, OpenClaim]) -> None:
        self.names: list[str] = []
        self._claims = claims
        nested = connection.get_nested_transaction()
        while nested is not None:
            self.names.insert(0, nested._savepoint)  # noqa: SLF001 - no other way to its name
            nested = nested._previous_nested  # noqa: SLF001

    def begin(self, name: str) -> None:
        """Note a SAVEPOINT."""
        self.names.append(name)

    def release(self, name: str) -> None:
        """Note a RELEASE: what was inside now belongs to what is around it."""
        depth = self._depth(name) or 0  # an unknown name may be that of any savepoint
        del self.names[depth:]
        for claim in self._claims.values():
            claim.savepoints = min(claim.savepoints, depth)
            claim.savepoints_at_end = min(claim.savepoints_at_end, depth)

    def roll_back_to(self, name: str, connection: Connection) -> None:
        """Note a ROLLBACK TO: claims that were made inside are gone, with all that they cover."""
        depth = self._depth(name)
        if depth is None:
            self._roll_back_to_unknown(connection)
            return
        del self.names[depth + 1 :]
        # A name of SQLAlchemy's means one savepoint; another name may have been used again unseen, so the rows decide.
        is_certain = name.startswith("sa_savepoint_")
        for claim in list(self._claims.values()):
            if claim.savepoints > depth and (is_certain or not is_there(claim, connection)):
                self.undo(claim)
            elif max(claim.savepoints, claim.savepoints_at_end) > depth:
                _cut(claim)

    def undo(self, claim: OpenClaim) -> None:
        """Forget a claim whose row was taken back."""
        claim.is_undone = claim.audience.is_undone = True
        del self._claims[claim.row.token]

    def _roll_back_to_unknown(self, connection: Connection) -> None:
        # It was made unseen: before the first claim, on the driver's own connection, or by a statement that begins with
        # another one. The rows show where it stood; a claim that has outlived it may have lost what its block wrote.
        self.names.clear()
        for claim in list(self._claims.values()):
            _cut(claim)
            claim.savepoints, claim.savepoints_at_end = 0, 0
            if not is_there(claim, connection):
                self.undo(claim)

    def _depth(self, name: str) -> int | None:
        for depth in reversed(range(len(self.names))):
            if self.names[depth] == name:
                return depth
        return None


def _cut(claim: OpenClaim) -> None:
    # A part of what its block has written may be gone.
    claim.is_cut, claim.completion = claim.completion is not None or claim.is_cut, None
