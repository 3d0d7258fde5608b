"""How far a reader goes who follows one request through the package: the calls, the switches of file, and the files.

Each limit is what the way needs at present. A change that needs more of it makes every request harder to follow: look for a
shorter way first (docs/architecture.md draws it), and raise the limit if there is none.
"""

import sys
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import create_engine
from support.app import Port, pay

import safeagent_sa
from safeagent_sa import ExecutionGuard


PACKAGE = Path(safeagent_sa.__file__).parent

# The first transactions of a connection prepare its statements.
WARM_UP = 5


class Way(NamedTuple):
    """What a reader crosses."""

    calls: int
    switches: int
    files: int


# Where another test of the process has ever listened to all engines, SQLAlchemy asks for more: one call for each statement.
LIMITS = {
    "new": Way(109, 52, 27),
    "replay": Way(58, 23, 20),
    "new, pipelined": Way(124, 65, 29),
    "replay, pipelined": Way(70, 31, 23),
    "effect": Way(120, 47, 20),
}


@pytest.fixture
def own(postgresql):
    """A connection that only this test uses, without listeners."""
    port = Port("postgresql", postgresql.url, create_engine(postgresql.url, pool_size=1, max_overflow=0))
    yield port
    port.engine.dispose()


def requests_of(own):
    """What is followed, by name: each call delivers one request."""

    def delivery(guard, name_of):
        def deliver():
            name = name_of()
            with own.sessions() as session, session.begin():
                with guard.claim(session, name, action="pay", payload={"amount": 100}) as execution:
                    if execution.is_replay:
                        assert execution.result
                    else:
                        execution.complete(pay(session, name))

        return deliver

    def fire():
        effect.execute(
            own.sessions, str(uuid.uuid4()), lambda _effect, amount: {"amount": amount}, 100, payload={"amount": 100}
        )

    plain, pipelined = ExecutionGuard(pipeline="off"), ExecutionGuard(pipeline="auto")
    effect = plain.effect("charge", lease=60, when_in_doubt="park")
    return {
        "new": delivery(plain, lambda: str(uuid.uuid4())),
        "replay": delivery(plain, lambda: "order-1"),
        "new, pipelined": delivery(pipelined, lambda: str(uuid.uuid4())),
        "replay, pipelined": delivery(pipelined, lambda: "order-2"),
        "effect": fire,
    }


def functions_on_the_way(run):
    """The functions of the package that a run enters, as (file, name); one that is entered again at once counts once.

    So does a generator that goes on. Comprehensions and lambdas do not count: Python 3.12 has made the former part of the
    function around them.
    """
    entered = []

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<") and Path(code.co_filename).is_relative_to(PACKAGE):
            here = Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_name
            if entered[-1:] != [here]:
                entered.append(here)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return entered


@pytest.mark.parametrize("kind", LIMITS)
def test_the_way_of_a_request_does_not_grow_unnoticed(own, kind):
    requests = requests_of(own)
    requests["new"]()  # as in an app, where the engine of an effect has met a claim
    for _ in range(WARM_UP):
        requests[kind]()
    entered = functions_on_the_way(requests[kind])

    files = [file for file, _ in entered]
    stops = [file for file, before in zip(files, [None, *files], strict=False) if file != before]
    way = Way(len(entered), len(stops) - 1, len(set(files)))
    print(f"\n{kind}: {way}")
    over = [name for name, found, most in zip(Way._fields, way, LIMITS[kind], strict=True) if found > most]
    assert not over, (
        f"a reader who follows this request ({kind}) crosses {way}, and the limit is {LIMITS[kind]}: more {' and '.join(over)}. "
        "The limit keeps the way of a request short enough to be read. Look for a shorter way first, and raise the limit if "
        "there is none. The way now:\n" + "\n".join(stops)
    )
