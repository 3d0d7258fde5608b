"""The app: charges and mails as effects. How each handles doubt depends on what the other system offers."""

import json
import smtplib
import urllib.error
import urllib.request
from email.message import EmailMessage
from typing import Any

from safeagent_sa import ExecutionGuard
from safeagent_sa.effects import EffectContext, Verdict, executed_more_than_once, not_executed, succeeded


class Provider:
    """The payment provider's API, as its client library would have it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def charge(self, effect: EffectContext, amount: int) -> Any:
        """Charge once per idempotency key: the provider answers a repeated key with its first answer."""
        request = urllib.request.Request(
            f"{self.address}/charges",
            data=json.dumps({"amount": amount}).encode(),
            headers={"Idempotency-Key": effect.idempotency_key, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 400:  # the provider has read the request and refused it: nothing was charged
                raise effect.not_done(error, data=json.load(error)) from error
            raise

    def find(self, effect: EffectContext) -> Verdict:
        """Probe: which charges does the provider have under our key?"""
        with urllib.request.urlopen(f"{self.address}/charges?key={effect.idempotency_key}", timeout=10) as answer:
            found = json.load(answer)
        if not found:
            return not_executed()
        return executed_more_than_once() if len(found) > 1 else succeeded(found[0])


def effects(guard: ExecutionGuard, provider: Provider):
    """Return an effect for each way to handle doubt: repeat under the same key, probe, or park for a person."""
    return {
        # The provider keeps idempotency keys, so the call may be made again.
        "retry": guard.effect("charge", lease=30, when_in_doubt="retry"),
        # The provider can be asked, which also works after it has dropped the key.
        "probe": guard.effect("charge", lease=30, when_in_doubt=provider.find),
        # SMTP offers neither: after the handover no program can know, so only a person may release it.
        "park": guard.effect("mail", lease=30, retry_on=(ConnectionRefusedError,)),
    }


def send_mail(effect: EffectContext, port: int, to: str) -> dict:
    """Hand a mail to the local server; a refused connection proves that nothing was sent."""
    message = EmailMessage()
    message["To"], message["From"], message["Subject"] = to, "shop@example.org", "Your order"
    message["Message-ID"] = f"<{effect.idempotency_key}@example.org>"  # receivers may drop a duplicate
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as server:
        server.send_message(message)
    return {"to": to}
