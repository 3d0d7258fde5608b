"""Every example payload that GitHub publishes, three times, shuffled, from six threads."""

import json
import random
import shutil
import subprocess
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from support import webhooks as signed
from support.app import Payment

from safeagent_sa import ExecutionGuard
from safeagent_sa.integrations.webhooks import GitHub, WebhookInbox


PACKAGE = "@octokit/webhooks-examples@7.6.1"


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """The published examples, as pairs of an event's name and a body."""
    if shutil.which("npm") is None:
        pytest.fail(
            "npm is not installed: apt install npm, or any Node.js; it fetches GitHub's example payloads", pytrace=False
        )
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        ["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    events = json.loads((folder / "package" / "api.github.com" / "index.json").read_text())
    return [(event["name"], json.dumps(example).encode()) for event in events for example in event["examples"]]


def test_each_example_is_handled_once(postgresql, examples):
    assert len(examples) == 329
    provider = GitHub(signed.SECRET)
    inbox = WebhookInbox(ExecutionGuard(), postgresql.sessions)

    @inbox.on(provider, "*")
    def handle(session, delivery):
        session.add(Payment(reference=delivery.id, amount=len(delivery.type)))

    deliveries = [(str(uuid.uuid4()), kind, body) for kind, body in examples] * 3
    random.Random(329).shuffle(deliveries)

    def receive(delivery):
        identity, kind, body = delivery
        return inbox.receive(provider, body, signed.github(body, delivery=identity, kind=kind)).status

    with ThreadPoolExecutor(6) as threads:
        statuses = list(threads.map(receive, deliveries))
    assert (len(statuses), set(statuses)) == (987, {200})
    with postgresql.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Payment)) == 329
        assert session.scalar(select(func.count(func.distinct(Payment.reference)))) == 329
