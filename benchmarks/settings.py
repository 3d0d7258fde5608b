"""How a run measures."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Settings:
    """What the command line asks for.

    Attributes:
        full: The long form.
        rounds: How many turns each contestant has.
        transactions: How many transactions a turn is.
        seed: Of the order of turns.
        work: What was stored in all, as the sections counted it.
    """

    full: bool
    rounds: int
    transactions: int
    seed: int
    work: dict[str, int] = field(default_factory=dict)

    @property
    def shuffled(self) -> random.Random:
        """The order of turns of one section, whichever sections ran before."""
        return random.Random(self.seed)
