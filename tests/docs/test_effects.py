"""The blocks of docs/effects.md, as pasted, and the example with the provider's ledger."""

import datetime as dt
import re
import shlex
import subprocess
import sys
from pathlib import Path

from sqlalchemy import update
from support.app import Payment
from support.patience import PATIENCE
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest, ExecutionStatus
from safeagent_sa.cli._app import app as command_line


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "effects.md").read_text()


class Provider:
    def __init__(self):
        self.charges = {}

    def charge(self, amount, idempotency_key):
        return self.charges.setdefault(idempotency_key, f"ch_{len(self.charges) + 1}")

    def find(self, key):
        return self.charges.get(key)


class Mailer:
    def __init__(self):
        self.sent = []

    def send(self, to):
        self.sent.append(to)


def put_in_doubt(port, request_id):
    def fail(effect):
        raise TimeoutError

    try:
        ExecutionGuard().effect("stripe.charge").execute(port.sessions, request_id, fail)
    except ExecutionInDoubtError:
        return


def test_the_page(sqlite, capsys):
    provider, mailer = Provider(), Mailer()
    put_in_doubt(sqlite, "order:41:charge")
    with sqlite.sessions() as session, session.begin():
        session.execute(
            update(ExecutionRequest).values(effect_started_at=dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc))
        )
    namespace = {
        "SessionLocal": sqlite.sessions,
        "provider": provider,
        "mailer": mailer,
        "Payment": lambda amount: Payment(reference="doc", amount=amount),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/effects.md", "exec"), namespace)
    assert "order:41:charge" in capsys.readouterr().out
    assert len(provider.charges) == 2
    assert mailer.sent == ["alice@example.org"]
    assert sqlite.payments("doc") == 2
    states = dict(sqlite.requests())
    assert set(states.values()) == {"completed"}
    assert len(states) == 5


def test_the_commands_of_the_page(sqlite):
    put_in_doubt(sqlite, "order:42:charge")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    codes = []
    for line in block.splitlines():
        done = CliRunner().invoke(command_line, shlex.split(line)[1:], env={"DATABASE_URL": sqlite.url})
        codes.append(done.exit_code)
    assert codes == [1, 0]
    with sqlite.sessions() as session:
        assert ExecutionGuard().get(session, "order:42:charge").result == {"charge": "ch_1"}


def test_the_diagram_has_every_state():
    diagram = (ROOT / "docs" / "diagrams" / "effect-states.mmd").read_text()
    assert set(re.findall(r"\b[a-z_]+(?= -->|:)", diagram)) >= {status.value for status in ExecutionStatus}


def test_the_example_ends_with_one_charge_for_each_order_and_one_mail():
    done = subprocess.run(
        [sys.executable, "-m", "examples.charges"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in said if "ledger:" in line or "taken:" in line] == ["1", "2", "1"]
    assert sum("killed" in line and "worker was" in line for line in said) == 3
    assert sum("in doubt" in line for line in said) == 2
