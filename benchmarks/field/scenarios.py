"""The faults. Each scenario delivers a request, makes something fail, delivers again, and counts payments."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import make_url
from support.proxy import Proxy

from benchmarks.field.adapter import Adapter, Answer
from benchmarks.field.business import AMOUNT, BusinessError, Work, receipt_of
from benchmarks.field.stage import LONG, Stage


THREADS = 8
IDS = 30


@dataclass(frozen=True)
class Verdict:
    """`outcome` is "pass", "FAIL" or "n/a"; `note` is the evidence, or what a pass leaves open."""

    outcome: str
    note: str = ""


class Failed(Exception):  # noqa: N818
    """The promise of the scenario was broken; the text is the evidence."""


def double_claim(stage: Stage) -> str:
    """Eight threads deliver the same id at the same moment, for 30 ids: one payment for each id, and every caller gets its receipt or a refusal."""
    barrier = threading.Barrier(THREADS)
    ids = [f"double-{number}" for number in range(IDS)]

    def caller(adapter: Adapter) -> list[Answer]:
        answers = []
        for request_id in ids:
            barrier.wait(timeout=100)
            answers.append(adapter.attempt(request_id, AMOUNT))
        return answers

    with stage.open(Work(), LONG) as adapter, ThreadPoolExecutor(THREADS) as pool:
        by_caller = [future.result() for future in [pool.submit(caller, adapter) for _ in range(THREADS)]]

    paid = {request_id: len(stage.payments(request_id)) for request_id in ids}
    if twice := sum(count > 1 for count in paid.values()):
        raise Failed(f"{twice} of {IDS} ids paid more than once, up to {max(paid.values())} times")
    if never := sum(count == 0 for count in paid.values()):
        raise Failed(f"{never} of {IDS} ids never paid")
    received = [answer for answers in by_caller for answer in answers]
    if errors := Counter(answer.name for answer in received if answer.kind == "error"):
        raise Failed("callers got " + ", ".join(f"{count} {name}" for name, count in sorted(errors.items())))
    for answers in by_caller:
        for request_id, answer in zip(ids, answers, strict=True):
            _compare(stage, request_id, answer)
    refused = Counter(answer.name for answer in received if answer.kind == "refusal")
    return f"duplicates in flight are refused: {', '.join(sorted(refused))}" if refused else ""


def crash_after_commit(stage: Stage) -> str:
    """The process is killed directly after the COMMIT of the payment; after another delivery there is one payment."""
    stage.crash("after", "committed")
    answer = stage.redeliver("after")
    _one_payment(stage, "after", answer)
    _compare(stage, "after", answer)
    return _value_note(stage) if answer.is_success else f"one payment, but no retry ever learns of it: {answer}"


def crash_before_commit(stage: Stage) -> str:
    """The process is killed before the payment is committed; another delivery executes the request: one payment."""
    stage.crash("before", "written")
    answer = stage.redeliver("before")
    _one_payment(stage, "before", answer)
    return ""


def other_arguments(stage: Stage) -> str:
    """The same id comes with another amount: it is refused, not executed and not answered with the old receipt."""
    with stage.open(Work()) as adapter:
        first = adapter.deliver("other", AMOUNT)
        answer = adapter.attempt("other", AMOUNT + 899)
    if (count := len(stage.payments("other"))) != 1:
        raise Failed(f"executed: {count} payments for one id")
    if answer.is_success:
        raise Failed("answered with the old receipt" if answer.receipt == first else "answered as success")
    return ""


def failure_replayed(stage: Stage) -> str:
    """The business code raises; another delivery executes the request or reports a failure, never a success without a payment."""
    work = Work()

    def refuse() -> None:
        raise BusinessError

    work.faults["written"] = refuse
    with stage.open(work) as adapter:
        if adapter.attempt("failing", AMOUNT).is_success:
            raise Failed("the failing delivery itself was answered as success")
        work.faults.clear()
        answer = adapter.redeliver("failing", AMOUNT)
    count = len(stage.payments("failing"))
    if count > 1 or (answer.is_success and count == 0):
        raise Failed(f"answered as success, with {count} payments")
    return "" if count else f"the failure is final: {answer}"


def rolled_back(stage: Stage) -> str:
    """The caller rolls back the transaction of the guarded call; another delivery executes it: one payment."""
    with stage.open(Work()) as adapter:
        with adapter.sessions() as session:
            adapter.deliver_in(session, "rolled-back", AMOUNT)
            session.rollback()
        answer = adapter.redeliver("rolled-back", AMOUNT)
    _one_payment(stage, "rolled-back", answer)
    return ""


def answer_lost(stage: Stage) -> str:
    """The network loses the answer to the COMMIT of the payment; after another delivery there is one payment and its receipt."""
    proxy = Proxy(stage.url)
    work = Work()

    def lose_answer() -> None:
        del work.faults["written"]  # once: some libraries run the business code again
        proxy.lose = "answer"

    work.faults["written"] = lose_answer
    try:
        with stage.open(work, business_url=make_url(proxy.url)) as adapter:
            first = adapter.attempt("lost", AMOUNT)
            answer = adapter.redeliver("lost", AMOUNT)
    finally:
        proxy.close()
    if proxy.lost != 1:
        raise RuntimeError(f"{stage.contestant.name} sent no COMMIT whose answer could be lost")
    _one_payment(stage, "lost", answer)
    for each in (first, answer):
        _compare(stage, "lost", each)
    if not answer.is_success:
        raise Failed(f"one payment, but no retry ever gets its receipt: {answer}")
    return _value_note(stage)


def same_receipt(stage: Stage) -> str:
    """Both of two deliveries get the value of the business code, a nested JSON value, unchanged."""
    with stage.open(Work()) as adapter:
        first, second = adapter.deliver("receipt", AMOUNT), adapter.deliver("receipt", AMOUNT)
    (payment,) = stage.payments("receipt")[:1]
    expected = receipt_of(payment)
    if first != expected:
        raise Failed("the value is not in the answer")
    if second != expected:
        raise Failed("the retry got another value")
    return ""


def _one_payment(stage: Stage, request_id: str, answer: Answer) -> None:
    count = len(stage.payments(request_id))
    if count > 1:
        raise Failed(f"{count} payments")
    if count == 0 and answer.is_success:
        raise Failed("answered as success, without a payment")
    if count == 0:
        raise Failed(f"stuck: never executed again ({answer})")


def _value_note(stage: Stage) -> str:
    return "" if stage.contestant.returns_value else "one payment, and a bare success without its receipt"


def _compare(stage: Stage, request_id: str, answer: Answer) -> None:
    if not answer.is_success or not stage.contestant.returns_value:
        return
    (payment,) = stage.payments(request_id)
    if answer.receipt != receipt_of(payment):
        raise Failed("a caller got something else than the receipt of the payment")


Scenario = Callable[[Stage], str]
SCENARIOS: dict[str, Scenario] = {
    "double claim": double_claim,
    "crash after COMMIT": crash_after_commit,
    "crash before COMMIT": crash_before_commit,
    "other arguments": other_arguments,
    "failure replayed": failure_replayed,
    "rolled back": rolled_back,
    "answer lost": answer_lost,
    "same receipt": same_receipt,
}


def judge(stage: Stage, name: str) -> Verdict:
    """Run one scenario. An exception that is no verdict is a fault of the adapter or of this code, and is raised."""
    if reason := stage.contestant.not_applicable.get(name):
        return Verdict("n/a", reason)
    try:
        return Verdict("pass", SCENARIOS[name](stage))
    except Failed as evidence:
        return Verdict("FAIL", str(evidence))
