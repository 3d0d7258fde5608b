"""The settings of a run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Settings:
    """The options of the command line.

    Attributes:
        full: Whether to take the long form.
        rounds: How many turns each contestant has.
        transactions: How many transactions a turn has.
        seed: The seed for the order of turns.
        work: The rows stored in total, as the sections have counted them.
    """

    full: bool
    rounds: int
    transactions: int
    seed: int
    work: dict[str, int] = field(default_factory=dict)

    @property
    def shuffled(self) -> random.Random:
        """A new source for the order of turns: the same for each section, whatever ran before."""
        return random.Random(self.seed)
