"""Delivers a request with a fault at each boundary of its handler, delivers it again, and compares the results."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..errors import ExecutionInDoubtError
from ..models import ExecutionRequest, ExecutionRequestMixin
from ._boundaries import EXIT_STATUS, Boundary, Fault, Watch, terminate_backend
from ._database import Contents, Database, difference, stable_columns, state_of
from ._effects import EffectRecorder
from ._handler import Handler
from ._ids import different_ids
from ._report import Delivery, FaultReport, Trial, Violation


def explore_faults(
    deliver: Callable[[], Any],
    session_factory: Any,
    *,
    effects: EffectRecorder | None = None,
    ignore: Collection[str] = (),
    at_once: int = 1,
    model: type[ExecutionRequestMixin] = ExecutionRequest,
    reset: Callable[[], None] | None = None,
    check: bool = True,
) -> FaultReport:
    """Deliver a request with each fault at each boundary of its handler; all rows are restored after each delivery.

    A delivery without a fault shows the boundaries: every statement, flush, savepoint, COMMIT and declared effect.
    Then, for each boundary and each fault that can happen there, the request is delivered with the fault, and twice
    more without one. The outcome must be that of one delivery: its business rows; a receipt if and only if they are
    there; equal answers; each effect at most once, or the request in doubt; no open transaction; and the same
    request_id in every delivery.

    It compares and restores all tables of the database, except columns with generated values (those that two deliveries
    without a fault fill differently). Never use it on a database whose rows you need.

    Args:
        deliver: Delivers the request once, as in production, in its own transaction; a function or a coroutine
            function. Its return value is the answer.
        session_factory: The `sessionmaker` or `async_sessionmaker` that the handler uses; the faults are injected into
            its engine.
        effects: The recorder that the handler's fakes of other systems call.
        ignore: Tables that may change on every delivery, such as an audit log.
        at_once: The number of deliveries at the same moment after the fault, from threads or tasks.
        model: The model that the guard is configured with.
        reset: Restores the database before each delivery; None to restore the rows that were there.
        check: Raise Violation at the end if the promise did not hold.

    Returns:
        The report: each fault that was tried at each boundary, and its outcome.

    Raises:
        Violation: The handler does not keep the promise; the message is the report with a timeline.
        ValueError: The delivery reaches no boundary, or the database cannot be explored.
        Exception: What the delivery raises without a fault.

    Example:
        ```python
        def test_a_payment_runs_once(explore_faults):
            explore_faults(lambda: handle_payment("order-1", 100), SessionLocal)
        ```
    """
    __tracebackhide__ = True  # pytest shows the caller's line and the report only
    explorer = _Explorer(deliver, session_factory, _Options(effects, frozenset(ignore), at_once, model, reset))
    try:
        report = explorer.explore()
    finally:
        explorer.close()
    if check and report.violations:
        violation = Violation(f"{report.headline}\n{report}")
        violation.report = report
        raise violation
    return report


@dataclass(frozen=True, slots=True)
class _Options:
    effects: EffectRecorder | None
    ignored: frozenset[str]
    at_once: int
    model: type[ExecutionRequestMixin]
    reset: Callable[[], None] | None


class _Explorer:
    def __init__(self, deliver: Callable[[], Any], session_factory: Any, options: _Options) -> None:
        self._handler = Handler(deliver, session_factory)
        self._options, self._effects = options, options.effects
        self._engine, self._do = self._handler.engine, self._handler.do
        self._database: Database = self._do(lambda: Database.of(self._engine, options.model, options.ignored))
        self._watch = Watch(self._engine, terminate_backend(self._database.quiet))
        self._has_server = self._engine.dialect.name != "sqlite"

    def close(self) -> None:
        self._do(self._engine.dispose)
        self._do(self._database.quiet.dispose)
        self._handler.close()

    def explore(self) -> FaultReport:
        self._before: Contents = self._do(self._database.read)
        with self._handler.listened() as sessions, self._watch.listening(sessions, self._effects):
            clean = self._undisturbed()
            self._claims_once = self._do(self._database.claims)
            first = self._do(self._database.read)
            self._completed_once = self._do(self._database.completed)
            self._fired_once = None if self._effects is None else self._effects.fired
            self._put_back()
            self._undisturbed()
            second = self._do(self._database.read)
            self._stable = stable_columns(self._database.business, first, second)
            self._state_before = state_of(self._before, self._stable)
            self._state_once = state_of(first, self._stable)
            if not clean:
                raise ValueError(
                    "the delivery reached no boundary: check that the handler uses the engine of this session_factory"
                )
            report = FaultReport(tuple(clean))
            for boundary in clean:
                for fault in boundary.faults(has_server=self._has_server, can_fork=hasattr(os, "fork")):
                    self._put_back()
                    report.trials.append(self._try(boundary, fault))
            self._put_back()
        return report

    def _undisturbed(self) -> list[Boundary]:
        with self._watch.delivery():
            self._handler.call()
        return self._watch.seen

    def _try(self, boundary: Boundary, fault: Fault) -> Trial:
        violations: list[str] = []
        answers: list[Any] = []
        deliveries = [self._hit(boundary, fault, answers)]
        violations += self._check_the_hit()
        deliveries += [self._deliver_again(answers, violations, at_once) for at_once in (self._options.at_once, 1)]
        violations += self._check_once(answers)
        unstable_ids = self._unstable_ids()
        if unstable_ids:
            violations.insert(0, different_ids(unstable_ids))
        return Trial(boundary, fault, tuple(deliveries), tuple(dict.fromkeys(violations)))

    def _hit(self, boundary: Boundary, fault: Fault, answers: list[Any]) -> Delivery:
        if fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER):
            with self._watch.delivery(boundary.number, fault):
                was_killed = self._handler.call_in_a_process() == EXIT_STATUS
            outcome = "killed" if was_killed else "ended before the boundary"
            return Delivery((boundary,), outcome, boundary if was_killed else None)
        with self._watch.delivery(boundary.number, fault):
            try:
                answers.append(self._handler.call())
                outcome = f"answered {answers[-1]!r}"
            except Exception as error:  # noqa: BLE001 - any error that the handler raises after the fault
                outcome = _summary(error)
        return Delivery(tuple(self._watch.seen), outcome, self._watch.struck)

    def _deliver_again(self, answers: list[Any], violations: list[str], at_once: int) -> Delivery:
        with self._watch.delivery():
            try:
                found = self._handler.call_at_once(at_once) if at_once > 1 else [self._handler.call()]
                answers += found
                outcome = f"answered {', '.join(sorted({repr(answer) for answer in found}))}"
            except ExecutionInDoubtError as error:
                outcome = _summary(error)
                if self._effects is None:
                    violations.append("the request is in doubt, although it has no effect")
            except Exception as error:  # noqa: BLE001 - any error of the handler
                outcome = _summary(error)
                violations.append(f"a later delivery failed: {outcome}")
        return Delivery(tuple(self._watch.seen), outcome)

    def _check_the_hit(self) -> list[str]:
        """Return what is wrong after the delivery with the fault."""
        wrong = self._left_open()
        found = state_of(self._do(self._database.read), self._stable)
        is_none, is_once = found == self._state_before, found == self._state_once
        if not is_none and not is_once:
            wrong.append(
                f"only a part of the business rows was committed ({difference(self._state_once, found)}): make all writes "
                "of a request in the transaction that claims it"
            )
        completed = self._do(self._database.completed)
        if self._completed_once and self._state_before != self._state_once:
            if is_once and completed != self._completed_once and not self._do(self._database.in_doubt):
                wrong.append(
                    "business rows were committed without a receipt: write them in the block that claims the request"
                )
            if is_none and sum(completed.values()) >= sum(self._completed_once.values()):
                wrong.append(
                    "a receipt was committed without the business rows, so no retry will write them: claim in the session "
                    "and transaction that writes them, and do not catch errors inside the block"
                )
        return wrong

    def _left_open(self) -> list[str]:
        found = self._do(lambda: self._database.open_transactions(self._engine))
        if found is None:
            return []
        gc.collect()  # a session without references returns its connection now, and not in another trial
        if self._do(lambda: self._database.open_transactions(self._engine)) is not None:
            found += ", and later deliveries may have to wait for it"
        return [found]

    def _check_once(self, answers: list[Any]) -> list[str]:
        """Return what is wrong after all deliveries."""
        wrong = self._left_open()
        is_in_doubt = bool(self._do(self._database.in_doubt))
        differs = difference(self._state_once, state_of(self._do(self._database.read), self._stable))
        if differs is not None and not is_in_doubt:
            wrong.append(f"the business rows are not those of one delivery: {differs}")
        if any(answer != answers[0] for answer in answers):
            wrong.append(
                f"the answers differ: {', '.join(sorted({repr(answer) for answer in answers}))[:300]}; return the result "
                "of the execution, which is the same for the first delivery and every retry"
            )
        if self._effects is not None and self._fired_once is not None:
            for name, times in (self._effects.fired - self._fired_once).items():
                wrong.append(
                    f"the effect {name!r} was done {times} time(s) too often: no rollback can undo it, so give the provider "
                    "an idempotency key that is the same on every attempt"
                )
        return wrong

    def _unstable_ids(self) -> list[str]:
        """Return the request_ids, if this trial claimed a payload of the first delivery with another request_id."""
        once = self._claims_once
        payloads = {(scope, action, fingerprint) for scope, _, action, fingerprint in once}
        others = {each for each in self._do(self._database.claims) - once if (each[0], *each[2:]) in payloads}
        return sorted({request_id for _, request_id, *_ in others | once}) if others else []

    def _put_back(self) -> None:
        if self._options.reset is None:
            self._do(lambda: self._database.write(self._before))
        else:
            self._options.reset()
        if self._effects is not None:
            self._effects.reset()


def _summary(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:160] if first else ''}"
