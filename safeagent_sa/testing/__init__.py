"""For your test suite: check that your handler runs once under faults, and helpers for everyday tests.

    explore_faults()        deliver a request once for each fault at each boundary of your handler, and compare
    assert_executed_once    one completed execution under a request_id
    deliver_at_once         the same delivery from many threads or tasks at the same moment
    rolled_back_session     a session whose commits are undone when the test ends
    in_progress, put_in_doubt, expire_lease     states that other workers would leave behind

Needs the extra `testing`. With pytest, the fixture `explore_faults` needs no import.
"""

from ._boundaries import Boundary, Fault, InjectedFault
from ._effects import EffectRecorder
from ._explorer import explore_faults
from ._helpers import (
    assert_executed_once,
    deliver_at_once,
    expire_lease,
    in_progress,
    put_in_doubt,
    rolled_back_session,
)
from ._report import FaultReport, Trial, Violation


__all__ = [
    "Boundary",
    "EffectRecorder",
    "Fault",
    "FaultReport",
    "InjectedFault",
    "Trial",
    "Violation",
    "assert_executed_once",
    "deliver_at_once",
    "expire_lease",
    "explore_faults",
    "in_progress",
    "put_in_doubt",
    "rolled_back_session",
]
