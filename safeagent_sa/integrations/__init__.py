"""Adapters, each imported only by the app that uses it; an adapter of a framework has an extra of the framework's name.

* HTTP: `http` is the core. `flask` and `wsgi` share `_owned_transaction`, `litestar` builds on `asgi`, and `fastapi` commits with
  the session of the endpoint. `webhooks` is an inbox on the same core.
* Outgoing HTTP: `_outgoing` is the core of `httpx` and `requests`.
* Queues: `messages` is one delivery, and `_queue_tasks` what the systems of tasks share.
* Agents: `agents` is the core of the modules of the frameworks.
* `opentelemetry` and `sqladmin` watch.
"""
