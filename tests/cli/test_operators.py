"""What operators see on a terminal: bars while something takes long, and what happened to one request."""

import os
import pty
import subprocess
import sys

import pytest
from support.app import deliver
from support.patience import PATIENCE
from typer.testing import CliRunner

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionRequest
from safeagent_sa._inspection.timeline import timeline
from safeagent_sa.cli._app import app as command_line
from safeagent_sa.effects import not_executed, succeeded


def on_a_terminal(*arguments):
    """Run a command whose stderr is a terminal; return its exit code and what the terminal shows."""
    shown, terminal = pty.openpty()
    command = [sys.executable, "-m", "safeagent_sa", *arguments]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""
    with os.fdopen(shown, "rb", buffering=0) as screen:
        while True:
            try:
                part = screen.read(4096)
            except OSError:  # Linux's end of a terminal
                break
            if not part:
                break
            seen += part
    return process.wait(PATIENCE), seen.decode()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("doctor", "--deep"), "looking at every row"),
        (("purge", "--older-than", "0d", "--allow-under-24-hours"), "purging"),
    ],
)
def test_long_work_shows_a_bar_on_a_terminal_and_nowhere_else(sqlite, command, shown):
    for number in range(3):
        deliver(sqlite, f"order-{number}")
    status, screen = on_a_terminal(*command, "--url", sqlite.url)
    assert (status, shown in screen) == (0, True), screen
    assert shown not in CliRunner().invoke(command_line, [*command, "--url", sqlite.url]).output


def test_show_prints_what_happened_to_an_effect(sqlite):
    def fail(_effect):
        raise TimeoutError("no answer")

    effect = ExecutionGuard(scope="acme").effect("charge")
    with pytest.raises(ExecutionInDoubtError):
        effect.execute(sqlite.sessions, "order-1", fail)
    guard = ExecutionGuard(scope="acme")
    for verdict in (not_executed(), succeeded({"charge": "ch_1"})):
        with sqlite.sessions() as session, session.begin():
            guard.resolve(session, "order-1", verdict, by="alice", evidence=f"seen {verdict.answer}")
        if verdict == not_executed():
            with pytest.raises(ExecutionInDoubtError):
                effect.execute(sqlite.sessions, "order-1", fail)
    with sqlite.sessions() as session:
        (row,) = session.query(*ExecutionRequest.__table__.c).all()
    steps = timeline(row._mapping)
    assert [step.kind for step in steps] == [
        "claimed",
        "attempt",
        "resolved",
        "started",
        "resolved",
        "completed",
    ]
    assert [(step.by, step.evidence) for step in steps if step.by] == [
        ("alice", "seen not_executed"),
        ("alice", "seen succeeded"),
    ]
    moments = [step.at for step in steps if step.at]
    assert moments == sorted(moments)

    shown = CliRunner().invoke(command_line, ["show", "order-1", "--scope", "acme", "--url", sqlite.url]).output
    assert "what happened" in shown
    assert "it has not happened, and nothing is on its way, said alice: seen not_executed" in " ".join(shown.split())
    assert "completed; every retry gets the receipt" in shown
