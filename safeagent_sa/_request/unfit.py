"""What unwinds from a value without a canonical form to the payload that holds it."""

from __future__ import annotations

from ..errors import InvalidPayloadError


# So much of a path is shown.
_MAX_PATH = 200


class Unfit(Exception):  # noqa: N818 - no error, but what one is made of
    """A value has no canonical form; each value around it adds its own step while this unwinds, so that no other pays for a path."""

    def __init__(self, problem: str, *steps: str) -> None:
        self.problem, self.steps = problem, [*steps]

    @property
    def error(self) -> InvalidPayloadError:
        """The error, with the place of the value."""
        path = "".join(["$", *reversed(self.steps)])
        message = f"payload at {path[:_MAX_PATH]} {self.problem}. Nothing was sent to the database."
        return InvalidPayloadError(message, path=path)
