"""The scenes of the demo. Each runs real processes and then counts in the database; no outcome is hard-coded."""

from __future__ import annotations

from collections.abc import Callable

from .narrator import Narrator, money
from .stage import Ledger, Stage
from .worker import Answer


PAYMENT = 2_500
ONE_PAYMENT = Ledger(payments=1, executions=1, balance_cents=-PAYMENT)
NOTHING = Ledger(payments=0, executions=0, balance_cents=0)


def app_before(stage: Stage, narrator: Narrator) -> None:
    """Create the app's database with the app's own two revisions."""
    narrator.scene(
        "The app before", "Accounts, payments and an Alembic history of two revisions; nothing of safeagent_sa."
    )
    narrator.command("alembic upgrade head", _steps(stage.run("alembic", "upgrade", "head")))
    [[payments]] = stage.query("SELECT count(*) FROM payments")
    narrator.promise(f"it works, and has {payments} payments", payments > 0)
    narrator.promise("there is no execution table", "execution_requests" not in stage.tables())


def one_more_revision(stage: Stage, narrator: Narrator) -> None:
    """Add our revision to the app's history."""
    narrator.scene("One more revision", "The guard's table becomes an ordinary step of the app's history.")
    everything = "SELECT id, account_id, payee, amount_cents FROM payments ORDER BY id"
    before = stage.query(everything)
    versions = stage.app / "migrations" / "versions"
    known = set(versions.glob("*.py"))
    stage.run("safeagent_sa", "revision")
    [written] = set(versions.glob("*.py")) - known
    narrator.command("safeagent-sa revision")
    narrator.code(f"migrations/versions/{written.name}", _essence(written.read_text(encoding="utf-8")))
    narrator.command("alembic upgrade head", _steps(stage.run("alembic", "upgrade", "head")))
    narrator.command("alembic check", stage.run("alembic", "check").splitlines()[-1])
    narrator.promise("the execution table is there", "execution_requests" in stage.tables())
    narrator.promise("the app's rows are unchanged", stage.query(everything) == before)


def sent_twice(stage: Stage, narrator: Narrator) -> None:
    """Deliver a request twice."""
    narrator.scene(
        "Sent twice", f"A client pays {money(PAYMENT)} as pay-1, gets no answer in time, and sends pay-1 again."
    )
    before = narrator.books(stage.ledger())
    first = stage.deliver("pay-1", PAYMENT)
    narrator.answer(first)
    second = stage.deliver("pay-1", PAYMENT)
    narrator.answer(second)
    change = narrator.books(stage.ledger()) - before
    narrator.promise("paid once", change == ONE_PAYMENT and first.executed and second.is_replay)
    narrator.promise("both have the same receipt", _same_receipt(first, second))


def two_at_once(stage: Stage, narrator: Narrator) -> None:
    """Deliver a request from two processes at the same moment."""
    narrator.scene("Two at once", "The queue gives pay-2 to two workers. Both connect, and then both start together.")
    before = narrator.books(stage.ledger())
    racers = [stage.start("pay-2", PAYMENT, stop_at="ready") for _ in range(2)]
    for racer in racers:
        racer.wait_until_stopped()
    for racer in racers:
        racer.release()
    answers = [racer.answer() for racer in racers]
    for answer in answers:
        narrator.answer(answer)
    change = narrator.books(stage.ledger()) - before
    executed = sum(answer.executed for answer in answers)
    replayed = sum(answer.is_replay for answer in answers)
    narrator.promise(
        "one of them paid, the other got the receipt", change == ONE_PAYMENT and (executed, replayed) == (1, 1)
    )
    narrator.promise("both have the same receipt", _same_receipt(*answers))


def killed_before_commit(stage: Stage, narrator: Narrator) -> None:
    """Kill a process between the business INSERT and the COMMIT, and deliver its request again."""
    narrator.scene(
        "Killed before the COMMIT", "The worker of pay-3 dies after its INSERT into payments. The queue delivers again."
    )
    before = narrator.books(stage.ledger())
    victim = stage.start("pay-3", PAYMENT, stop_at="inserted")
    victim.wait_until_stopped()
    narrator.event(f"worker {victim.pid}", "has sent the INSERT of the payment, but not the COMMIT")
    victim.kill()
    narrator.event(f"worker {victim.pid}", f"killed (exit code {victim.exit_code})")
    left = narrator.books(stage.ledger()) - before
    [[claims]] = stage.query("SELECT count(*) FROM execution_requests WHERE request_id = 'pay-3'")
    second = stage.deliver("pay-3", PAYMENT)
    narrator.answer(second)
    change = narrator.books(stage.ledger()) - before
    narrator.promise("the crash left nothing behind: no payment, and no claim", left == NOTHING and claims == 0)
    narrator.promise("the second delivery paid, once", change == ONE_PAYMENT and second.executed)


def killed_after_commit(stage: Stage, narrator: Narrator) -> None:
    """Kill a process between its COMMIT and its answer, and deliver its request again."""
    narrator.scene(
        "Killed after the COMMIT",
        "The worker of pay-4 has paid, and dies before it can answer. The queue delivers again.",
    )
    before = narrator.books(stage.ledger())
    victim = stage.start("pay-4", PAYMENT, stop_at="committed")
    victim.wait_until_stopped()
    narrator.event(f"worker {victim.pid}", "has committed, and has not answered")
    victim.kill()
    narrator.event(f"worker {victim.pid}", f"killed (exit code {victim.exit_code})")
    left = narrator.books(stage.ledger()) - before
    [[newest]] = stage.query("SELECT max(id) FROM payments")
    second = stage.deliver("pay-4", PAYMENT)
    narrator.answer(second)
    change = narrator.books(stage.ledger()) - before
    narrator.promise("it was paid once, by the worker that died", left == change == ONE_PAYMENT and second.is_replay)
    narrator.promise(
        f"the retry got its receipt, of payment {newest}", (second.receipt or {}).get("payment_id") == newest
    )


def another_amount(stage: Stage, narrator: Narrator) -> None:
    """Use a request_id again for another payment."""
    narrator.scene("The same id for another payment", f"A bug sends pay-1 again, with {money(10 * PAYMENT)} this time.")
    before = narrator.books(stage.ledger())
    answer = stage.deliver("pay-1", 10 * PAYMENT)
    narrator.answer(answer)
    change = narrator.books(stage.ledger()) - before
    narrator.promise("refused, and no money moved", change == NOTHING and answer.refused == "RequestConflictError")


Scene = Callable[[Stage, Narrator], None]

PROLOGUE: tuple[Scene, ...] = (app_before, one_more_revision)
SCENES: tuple[Scene, ...] = (sent_twice, two_at_once, killed_before_commit, killed_after_commit, another_amount)


def _same_receipt(one: Answer, other: Answer) -> bool:
    return one.receipt is not None and one.receipt == other.receipt


def _steps(output: str) -> str:
    """Return what Alembic has logged about the revisions, without the logger's prefix."""
    lines = [line.partition("] ")[2] for line in output.splitlines() if "Running" in line]
    return "\n".join(lines)


def _essence(source: str) -> str:
    """Return the lines that distinguish a revision from others."""
    lines = [line for line in source.splitlines() if line.startswith("def ") or "safeagent" in line]
    return "\n".join(f"\n{line}" if line.startswith("def ") else line for line in lines)
