"""Stands for the outside world in an exploration: counts what a handler has fired, also from a process that was killed."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class EffectRecorder:
    """Counts effects: your fake of a payment provider or mail server calls it; nothing of it is in any transaction.

    It writes to a file, so that what a killed process has fired is counted, too.

    Example:
        ```python
        charges = EffectRecorder()


        def fake_charge(amount, idempotency_key):
            charges("charge", key=idempotency_key)
            return {"id": "ch_1"}
        ```
    """

    def __init__(self) -> None:
        """Begin with nothing fired."""
        handle, name = tempfile.mkstemp(prefix="safeagent_sa-effects-")
        os.close(handle)
        self._path = Path(name)
        self._hook: Callable[[str, str], None] | None = None

    def __call__(self, name: str, key: str | None = None) -> None:
        """Note that an effect is fired.

        Args:
            name: What is done.
            key: The idempotency key that the provider is given: firing again with the same key is no second effect.
        """
        if self._hook is not None:
            self._hook("before", name)
        with self._path.open("a") as file:
            file.write(f"{name}\t{'' if key is None else key}\n")
        if self._hook is not None:
            self._hook("after", name)

    @property
    def fired(self) -> Counter[str]:
        """How often each effect was done: by name, once for each key, and each time without one."""
        lines = [line.partition("\t") for line in self._path.read_text().splitlines()]
        done = Counter(name for name, _, key in lines if not key)
        done.update(name for name, _ in {(name, key) for name, _, key in lines if key})
        return done

    def reset(self) -> None:
        """Forget everything."""
        self._path.write_text("")

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
