"""Signs webhooks as their providers do."""

import base64
import hashlib
import hmac
import json
import time


SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def stripe(body, secret=SECRET, at=None, key="v1"):
    at = int(time.time()) if at is None else at
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},{key}={digest}"}


def github(body, secret=SECRET, delivery="d-1", kind="push", hook="7"):
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={digest}",
        "X-GitHub-Delivery": delivery,
        "X-GitHub-Event": kind,
        "X-GitHub-Hook-ID": hook,
    }


def standard(body, secret=SECRET, at=None, identity="msg_1"):
    at = int(time.time()) if at is None else at
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(at),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def event(identity="evt_1", kind="invoice.paid", **more):
    return json.dumps({"id": identity, "type": kind, **more}).encode()
