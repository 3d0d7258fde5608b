"""The scenes of the demo. Each runs real processes and then counts in the database; no outcome is written down here."""

from __future__ import annotations

from collections.abc import Callable

from .narrator import Narrator, money
from .stage import Ledger, Stage
from .worker import Answer


PAYMENT = 2_500
ONE_PAYMENT = Ledger(payments=1, executions=1, balance_cents=-PAYMENT)
NOTHING = Ledger(payments=0, executions=0, balance_cents=0)


def app_as_it_was(stage: Stage, tell: Narrator) -> None:
    """Bring the app's database up by the app's own two revisions."""
    tell.scene(
        "The app as it was", "Accounts, payments and an Alembic history of two revisions; nothing of safeagent_sa."
    )
    tell.command("alembic upgrade head", _steps(stage.run("alembic", "upgrade", "head")))
    [[payments]] = stage.query("SELECT count(*) FROM payments")
    tell.promise(f"it works, and has {payments} payments", payments > 0)
    tell.promise("there is no execution table", "execution_requests" not in stage.tables())


def one_revision_more(stage: Stage, tell: Narrator) -> None:
    """Add our revision to the app's history."""
    tell.scene("One revision more", "The guard's table becomes an ordinary step of the app's own history.")
    everything = "SELECT id, account_id, payee, amount_cents FROM payments ORDER BY id"
    before = stage.query(everything)
    versions = stage.app / "migrations" / "versions"
    known = set(versions.glob("*.py"))
    stage.run("safeagent_sa", "revision")
    [written] = set(versions.glob("*.py")) - known
    tell.command("safeagent-sa revision")
    tell.code(f"migrations/versions/{written.name}", _essence(written.read_text(encoding="utf-8")))
    tell.command("alembic upgrade head", _steps(stage.run("alembic", "upgrade", "head")))
    tell.command("alembic check", stage.run("alembic", "check").splitlines()[-1])
    tell.promise("the execution table is there", "execution_requests" in stage.tables())
    tell.promise("the rows of the app are what they were", stage.query(everything) == before)


def sent_twice(stage: Stage, tell: Narrator) -> None:
    """Deliver a request, and deliver it again."""
    tell.scene("Sent twice", f"A client pays {money(PAYMENT)} as pay-1, gets no answer in time, and sends pay-1 again.")
    before = tell.books(stage.ledger())
    first = stage.deliver("pay-1", PAYMENT)
    tell.answer(first)
    second = stage.deliver("pay-1", PAYMENT)
    tell.answer(second)
    change = tell.books(stage.ledger()) - before
    tell.promise("paid once", change == ONE_PAYMENT and first.executed and second.is_replay)
    tell.promise("both have the same receipt", _same_receipt(first, second))


def two_at_once(stage: Stage, tell: Narrator) -> None:
    """Deliver a request from two processes at the same moment."""
    tell.scene(
        "Two at once", "The queue hands pay-2 to two workers. Both are connected, then both are let go together."
    )
    before = tell.books(stage.ledger())
    racers = [stage.start("pay-2", PAYMENT, stop_at="ready") for _ in range(2)]
    for racer in racers:
        racer.wait_until_stopped()
    for racer in racers:
        racer.release()
    answers = [racer.answer() for racer in racers]
    for answer in answers:
        tell.answer(answer)
    change = tell.books(stage.ledger()) - before
    executed = sum(answer.executed for answer in answers)
    replayed = sum(answer.is_replay for answer in answers)
    tell.promise(
        "one of them paid, the other was given the receipt", change == ONE_PAYMENT and (executed, replayed) == (1, 1)
    )
    tell.promise("both have the same receipt", _same_receipt(*answers))


def killed_before_commit(stage: Stage, tell: Narrator) -> None:
    """Kill a process between the business INSERT and the COMMIT, and deliver its request again."""
    tell.scene(
        "Killed before the COMMIT", "The worker of pay-3 dies after its INSERT into payments. The queue delivers again."
    )
    before = tell.books(stage.ledger())
    victim = stage.start("pay-3", PAYMENT, stop_at="inserted")
    victim.wait_until_stopped()
    tell.event(f"worker {victim.pid}", "has sent the INSERT of the payment, has not sent COMMIT")
    victim.kill()
    tell.event(f"worker {victim.pid}", f"killed (exit code {victim.exit_code})")
    left = tell.books(stage.ledger()) - before
    [[claims]] = stage.query("SELECT count(*) FROM execution_requests WHERE request_id = 'pay-3'")
    second = stage.deliver("pay-3", PAYMENT)
    tell.answer(second)
    change = tell.books(stage.ledger()) - before
    tell.promise("the crash left nothing behind: no payment, and no claim in the way", left == NOTHING and claims == 0)
    tell.promise("the second delivery paid, once", change == ONE_PAYMENT and second.executed)


def killed_after_commit(stage: Stage, tell: Narrator) -> None:
    """Kill a process between its COMMIT and its answer, and deliver its request again."""
    tell.scene(
        "Killed after the COMMIT",
        "The worker of pay-4 has paid, and dies before it can say so. The queue delivers again.",
    )
    before = tell.books(stage.ledger())
    victim = stage.start("pay-4", PAYMENT, stop_at="committed")
    victim.wait_until_stopped()
    tell.event(f"worker {victim.pid}", "has had its COMMIT, has answered nobody")
    victim.kill()
    tell.event(f"worker {victim.pid}", f"killed (exit code {victim.exit_code})")
    left = tell.books(stage.ledger()) - before
    [[newest]] = stage.query("SELECT max(id) FROM payments")
    second = stage.deliver("pay-4", PAYMENT)
    tell.answer(second)
    change = tell.books(stage.ledger()) - before
    tell.promise("it was paid once, by the worker that died", left == change == ONE_PAYMENT and second.is_replay)
    tell.promise(
        f"the retry was given its receipt, of payment {newest}", (second.receipt or {}).get("payment_id") == newest
    )


def another_amount(stage: Stage, tell: Narrator) -> None:
    """Use a request_id again for something else."""
    tell.scene("The same id for something else", f"A bug sends pay-1 again, with {money(10 * PAYMENT)} this time.")
    before = tell.books(stage.ledger())
    answer = stage.deliver("pay-1", 10 * PAYMENT)
    tell.answer(answer)
    change = tell.books(stage.ledger()) - before
    tell.promise("refused, and no money moved", change == NOTHING and answer.refused == "RequestConflictError")


Scene = Callable[[Stage, Narrator], None]

PROLOGUE: tuple[Scene, ...] = (app_as_it_was, one_revision_more)
SCENES: tuple[Scene, ...] = (sent_twice, two_at_once, killed_before_commit, killed_after_commit, another_amount)


def _same_receipt(one: Answer, other: Answer) -> bool:
    return one.receipt is not None and one.receipt == other.receipt


def _steps(output: str) -> str:
    """Return what Alembic said about the revisions that it ran, without the logger's decoration."""
    lines = [line.partition("] ")[2] for line in output.splitlines() if "Running" in line]
    return "\n".join(lines)


def _essence(source: str) -> str:
    """Return the lines of a revision that are not in every revision."""
    lines = [line for line in source.splitlines() if line.startswith("def ") or "safeagent" in line]
    return "\n".join(f"\n{line}" if line.startswith("def ") else line for line in lines)
