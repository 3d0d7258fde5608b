"""The business of the app: it sends a payment once per request_id."""

from __future__ import annotations

from sqlalchemy.orm import Session

from safeagent_sa import Execution, ExecutionGuard

from .models import Account, ExecutionRequest, Payment


guard = ExecutionGuard(model=ExecutionRequest)


class InsufficientFundsError(Exception):
    """The balance is too small; nothing was written, so a later retry may succeed."""


def send_payment(session: Session, request_id: str, *, account_id: int, payee: str, amount_cents: int) -> Execution:
    """Debit an account and record the payment, in the caller's transaction; the caller commits.

    Args:
        session: The session whose transaction claims, pays and stores the receipt.
        request_id: Names the intent to pay, the same on every retry.
        account_id: The account that pays.
        payee: The recipient.
        amount_cents: The amount.

    Returns:
        The execution; its `result` is the receipt, the same for the first caller and for every retry.

    Raises:
        InsufficientFundsError: The balance is too small.
    """
    payload = {"account_id": account_id, "payee": payee, "amount_cents": amount_cents}
    with guard.claim(session, request_id, action="send_payment", payload=payload) as execution:
        if not execution.is_replay:
            account = session.get_one(Account, account_id, with_for_update=True)
            if account.balance_cents < amount_cents:
                message = f"account {account_id} has {account.balance_cents} cents, the payment needs {amount_cents}"
                raise InsufficientFundsError(message)
            account.balance_cents -= amount_cents
            payment = Payment(account_id=account_id, payee=payee, amount_cents=amount_cents)
            session.add(payment)
            session.flush()  # the receipt needs the payment's id
            execution.complete({"payment_id": payment.id, "amount_cents": amount_cents})
    return execution
