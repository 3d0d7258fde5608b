"""Our verification against the providers' own libraries: both sign, both verify, and ours has no other errors."""

import datetime as dt
import json
import time

import pytest
import standardwebhooks
import stripe as stripe_library
from hypothesis import given, settings
from hypothesis import strategies as st
from support import webhooks as signed

from safeagent_sa import InvalidDeliveryError, InvalidSignatureError
from safeagent_sa.integrations.webhooks import StandardWebhooks, Stripe


SECRET = signed.SECRET
MINE = (InvalidSignatureError, InvalidDeliveryError)
stripe, standard = Stripe(SECRET), StandardWebhooks(SECRET, name="billing")
theirs = standardwebhooks.Webhook(SECRET)


def verdict(function, *arguments):
    """Return whether a library takes a webhook."""
    try:
        function(*arguments)
    except Exception:  # noqa: BLE001 - theirs raises several kinds
        return False
    return True


def test_what_stripe_signs_we_take_and_what_we_sign_stripe_takes():
    body, at = signed.event(), int(time.time())
    digest = stripe_library.WebhookSignature._compute_signature(f"{at}.{body.decode()}", SECRET)
    assert stripe.verify(body, {"Stripe-Signature": f"t={at},v1={digest}"}).id == "evt_1"
    found = stripe_library.Webhook.construct_event(body, signed.stripe(body)["Stripe-Signature"], SECRET)
    assert found["id"] == "evt_1"


def test_what_a_sender_of_standard_webhooks_signs_we_take_and_what_we_sign_it_takes():
    body, now = signed.event(), dt.datetime.now(dt.timezone.utc)
    signature = theirs.sign("msg_1", now, body.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    assert standard.verify(body, headers).id == "msg_1"
    assert theirs.verify(body, signed.standard(body)) == json.loads(body)


headers = st.text(st.characters(max_codepoint=0xFF), max_size=30)


@settings(max_examples=600, deadline=None)
@given(value=headers, prefix=st.sampled_from(["", "t=1,v1=", "v1,", "v1=", "t="]), body=st.binary(max_size=20))
def test_no_input_makes_another_error_and_none_is_taken_that_they_refuse(value, prefix, body):
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        hostile = signed.standard(body) | {name: prefix + value}
        try:
            standard.verify(body, hostile)
        except MINE:
            continue
        assert verdict(theirs.verify, body, hostile)
    try:
        stripe.verify(body, {"Stripe-Signature": prefix + value})
    except MINE:
        return
    assert verdict(stripe_library.Webhook.construct_event, body, prefix + value, SECRET)


@pytest.mark.parametrize("age", [-1000, -301, -290, 0, 290, 301])
def test_the_tolerance_is_theirs(age):
    body, at = signed.event(), int(time.time()) + age
    ours = verdict(stripe.verify, body, signed.stripe(body, at=at))
    assert ours == verdict(
        stripe_library.Webhook.construct_event, body, signed.stripe(body, at=at)["Stripe-Signature"], SECRET
    )
    ours = verdict(standard.verify, body, signed.standard(body, at=at))
    assert ours == verdict(theirs.verify, body, signed.standard(body, at=at))


@pytest.mark.parametrize("body", [b"\xff\xfe\xfa", b"\x80"])
def test_a_body_that_is_no_text_is_an_error_of_ours_and_not_one_of_the_interpreter(body):
    with pytest.raises(UnicodeDecodeError):
        stripe_library.Webhook.construct_event(body, signed.stripe(body)["Stripe-Signature"], SECRET)
    with pytest.raises(UnicodeDecodeError):
        theirs.verify(body, signed.standard(body))
    for provider, sign in ((stripe, signed.stripe), (standard, signed.standard)):
        with pytest.raises(InvalidSignatureError):
            provider.verify(body + b"tampered", sign(body))
        with pytest.raises(InvalidDeliveryError):
            provider.verify(body, sign(body))
