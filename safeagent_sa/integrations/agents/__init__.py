"""Tool calls of AI agents: what the key must be, and what the model gets; no framework is imported here.

Decorate a tool with `guarded_tool` (it writes to the database) or `guarded_effect` (it calls another system). The modules of the
frameworks, such as `safeagent_sa.integrations.mcp`, have the same decorators with their own way to show an answer; the decorators
of this module return it as JSON text, which serves every framework whose tools may return a text.
"""

from __future__ import annotations

from ._answers import AnswerStatus, ToolAnswer, answer_of, answer_to
from ._calls import Channel, Shown, answered, has_receipt
from ._intents import AsyncPreparedIntents, Intent, PreparedIntents
from ._keys import CALLER_KEY, refuse_unstable
from ._repeats import Repeated, RepeatedIntents
from ._shield import finish_effects
from ._tools import EffectOptions, Key, ToolOptions, guarded_effect, guarded_tool


__all__ = [
    "CALLER_KEY",
    "AnswerStatus",
    "AsyncPreparedIntents",
    "Channel",
    "EffectOptions",
    "Intent",
    "Key",
    "PreparedIntents",
    "Repeated",
    "RepeatedIntents",
    "Shown",
    "ToolAnswer",
    "ToolOptions",
    "answer_of",
    "answer_to",
    "answered",
    "finish_effects",
    "guarded_effect",
    "guarded_tool",
    "has_receipt",
    "refuse_unstable",
]
