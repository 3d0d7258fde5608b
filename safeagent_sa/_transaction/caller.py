"""Finds the line of the caller's code that an error is about; it is looked for only once there is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


_ON_THE_WAY = {"safeagent_sa", "sqlalchemy", "greenlet", "contextlib", "asyncio"}
"""Packages between the caller's code and the guard."""


def location() -> str | None:
    """Return the innermost line of the caller's code, such as `/srv/shop/orders.py:12 in send_payment`."""
    for frame in _frames():
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _ON_THE_WAY:
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
    return None


def _frames() -> Iterator[FrameType]:
    """Give the frames of this thread, innermost first, with those of the coroutines that await a greenlet of SQLAlchemy's."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe() is the same, but for its name
    library = sys.modules.get("greenlet")  # not imported where nothing can be in a greenlet
    greenlet: Any = library.getcurrent() if library is not None else None
    while frame is not None:
        yield frame
        frame = frame.f_back
        while frame is None and greenlet is not None and (greenlet := greenlet.parent) is not None:
            frame = greenlet.gr_frame
