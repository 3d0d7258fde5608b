"""`safeagent-sa relay`: runs a relay of the app until a signal stops it."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from ..relay import Relay
from ._console import Stop, in_sentences, out
from ._loading import loaded


@in_sentences
def relay(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="A relay of your app, or a function that returns one.")
    ],
    *,
    is_once: Annotated[bool, typer.Option("--once", help="Fire the effects that are due now, then exit.")] = False,
) -> None:
    """Fire the effects that were stored with business rows, after their COMMIT.

    Several relays may run at once. SIGTERM and Ctrl-C stop the relay after the effect that it is firing.
    """
    found = _load(target)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if is_once:
        out.print(f"{found.run_once()} effect(s)")
        return
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: found.stop())
    out.print("the relay runs; stop it with Ctrl-C or SIGTERM")
    found.run()
    out.print("the relay has stopped")


def _load(target: str) -> Relay:
    found = loaded(target, "a relay", param_hint="MODULE:NAME")
    found = found() if callable(found) else found
    if not isinstance(found, Relay):
        raise Stop(
            f"{target} is of type {type(found).__name__}, not a relay made by guard.relay(session_factory, handlers)"
        )
    return found
