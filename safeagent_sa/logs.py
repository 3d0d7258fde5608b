"""Puts the request whose block is open into the app's own log records."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import ref


class Block(Protocol):
    """The block of one execution."""

    @property
    def execution(self) -> Any:
        """What the block has claimed, or the replay."""


OPEN: ContextVar[ref[Block] | None] = ContextVar("safeagent_sa.open_block", default=None)
"""The block that is open in this thread or task, or in the block that has made the task; or None.

A reference that holds nothing: a block that is dropped, or that ends in another context, is then open here no longer.
"""


class RequestFilter(logging.Filter):
    """Adds the open block's request to each log record, for a handler; it writes to no transaction and drops no record.

    The record gets `safeagent_request_id`, `safeagent_scope` and `safeagent_replay` (a bool), each None outside of a block. A
    block is that of `claim`, of `execute`, `run_transaction` and `idempotent`, and of `batch.each`. Tasks that a block makes
    have its request too, threads do not. Add it to a handler: a filter of a logger sees no records of other loggers.

    Example:
        ```python
        handler = logging.StreamHandler()
        handler.addFilter(RequestFilter())
        handler.setFormatter(logging.Formatter("%(message)s request=%(safeagent_request_id)s"))
        logging.getLogger().addHandler(handler)
        ```
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes that the record does not have, and return True: every record passes."""
        open_ = OPEN.get()
        block = None if open_ is None else open_()
        execution = None if block is None else block.execution
        for attribute, name in _ATTRIBUTES.items():
            value = None if execution is None else getattr(execution, name)
            record.__dict__.setdefault(attribute, value)  # a record of LoggingListener has them
        return True


_ATTRIBUTES = {"safeagent_request_id": "request_id", "safeagent_scope": "scope", "safeagent_replay": "is_replay"}
