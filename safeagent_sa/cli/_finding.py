"""What `safeagent-sa doctor` says of one thing that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: Stable, for scripts.
        severity: "problem": the promise does not hold or claims fail; "warning": it costs or will hurt; "ok".
        found: What is there.
        advice: What to do, or "".
    """

    code: str
    severity: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
