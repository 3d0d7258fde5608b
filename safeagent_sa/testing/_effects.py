"""Stands for other systems in an exploration: counts the effects of a handler, also those of a killed process."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class EffectRecorder:
    """Counts effects: your fake of a payment provider or mail server calls it; it takes part in no transaction.

    It writes to a file, so that the effects of a killed process are counted too.

    Example:
        ```python
        charges = EffectRecorder()


        def fake_charge(amount, idempotency_key):
            charges("charge", key=idempotency_key)
            return {"id": "ch_1"}
        ```
    """

    def __init__(self) -> None:
        """Begin without effects."""
        handle, name = tempfile.mkstemp(prefix="safeagent_sa-effects-")
        os.close(handle)
        self._path = Path(name)
        self._hook: Callable[[str, str], None] | None = None

    def __call__(self, name: str, key: str | None = None) -> None:
        """Count an effect.

        Args:
            name: What is done.
            key: The idempotency key that the provider gets: a second call with the same key is no second effect.
        """
        if self._hook is not None:
            self._hook("before", name)
        with self._path.open("a") as file:
            file.write(f"{name}\t{'' if key is None else key}\n")
        if self._hook is not None:
            self._hook("after", name)

    @property
    def fired(self) -> Counter[str]:
        """The number of effects by name: one for each key, and one for each call without a key."""
        lines = [line.partition("\t") for line in self._path.read_text().splitlines()]
        done = Counter(name for name, _, key in lines if not key)
        done.update(name for name, _ in {(name, key) for name, _, key in lines if key})
        return done

    def reset(self) -> None:
        """Forget all effects."""
        self._path.write_text("")

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
