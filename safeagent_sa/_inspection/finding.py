"""The result of one check of the doctor: what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        code: The name of the check, stable for scripts.
        severity: "problem": the promise does not hold, or claims fail; "warning": it costs time or can cause trouble; "ok".
        found: What the check has found.
        advice: What to do, or "".
    """

    code: str
    severity: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
