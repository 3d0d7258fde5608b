"""Deliver charges and mails with a fault at the worst moment, and count what the other side has in its ledger."""

import socket
import tempfile
from pathlib import Path

from aiosmtpd.controller import Controller
from sqlalchemy import create_engine, update
from sqlalchemy.orm import sessionmaker

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest, metadata, sqlite
from safeagent_sa.effects import succeeded

from . import provider
from .app import Provider, effects, send_mail


class Killed(BaseException):
    """Stands for `kill -9`: nothing of the worker runs after it."""


def killed_after(fn):
    def call(effect, *arguments):
        fn(effect, *arguments)
        raise Killed

    return call


class Mails:
    """The mails that the mail server has accepted."""

    def __init__(self):
        self.taken = []

    async def handle_DATA(self, _server, _session, envelope):
        self.taken.append(envelope.rcpt_tos)
        return "250 taken"


def main():
    with tempfile.TemporaryDirectory() as folder, provider.running() as (address, ledger):
        engine = create_engine(f"sqlite:///{Path(folder) / 'shop.db'}")
        sqlite.configure(engine)
        metadata.create_all(engine)
        sessions = sessionmaker(engine)
        guard = ExecutionGuard()
        client = Provider(address)
        by = effects(guard, client)

        def deliver(policy, request_id, fn, *arguments):
            """Deliver once and print the outcome. The lease of a dead worker is ended here, so that nothing waits for it."""
            try:
                outcome = by[policy].execute(sessions, request_id, fn, *arguments, payload=arguments).result
            except ExecutionInDoubtError:
                outcome = "in doubt"
            except Killed:
                with sessions.begin() as session:
                    session.execute(
                        update(ExecutionRequest)
                        .where(ExecutionRequest.status == "leased")
                        .values(lease_expires_at=ExecutionRequest.created_at)
                    )
                outcome = "the worker was killed"
            print(f"  {request_id}: {outcome}")

        print("retry: the answer is lost, then the worker is killed before it can record anything")
        ledger.drop_answers = 1
        deliver("retry", "order-1", client.charge, 100)
        deliver("retry", "order-1", killed_after(client.charge), 100)
        deliver("retry", "order-1", client.charge, 100)
        deliver("retry", "order-1", client.charge, 100)
        print(f"  charges in the provider's ledger: {len(ledger.charges)}")

        print("probe: the worker is killed again, and the next one asks the provider first")
        deliver("probe", "order-2", killed_after(client.charge), 200)
        deliver("probe", "order-2", client.charge, 200)
        print(f"  charges in the provider's ledger: {len(ledger.charges)}")

        print("park: a mail server keeps no keys, so a person finds out")
        mails = Mails()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = Controller(mails, hostname="127.0.0.1", port=port)
        server.start()
        try:
            deliver("park", "order-2/mail", killed_after(send_mail), port, "alice@example.org")
            deliver("park", "order-2/mail", send_mail, port, "alice@example.org")
            with sessions.begin() as session:
                (doubt,) = guard.in_doubt(session)
                guard.resolve(session, doubt.request_id, succeeded("taken"), by="you", evidence="the server's log")
            deliver("park", "order-2/mail", send_mail, port, "alice@example.org")
        finally:
            server.stop()
        print(f"  mails that the server has taken: {len(mails.taken)}")
        engine.dispose()


if __name__ == "__main__":
    main()
