"""The async verbs have the signatures and docstrings of the sync ones: `make aio` has written them."""

import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from safeagent_sa import ExecutionGuard
from safeagent_sa.aio import AsyncExecutionGuard


ROOT = Path(__file__).resolve().parents[2]
tool = runpy.run_path(str(ROOT / "tools" / "aio.py"))
GUARD, AIO = (ROOT / "safeagent_sa" / name for name in ("guard.py", "aio.py"))


def written(source, target):
    return tool["rewritten"](source, target, tool["DOORS"][0])


def test_the_async_verbs_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools" / "aio.py", "--check"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wait_timeout: float | UseDefault | None = USE_DEFAULT", "wait_timeout: float | None = 7.0"),
        ("result_type: type[ResultT],", "result_type: type[ResultT] | None,"),
        ("AlreadyClaimedError: This transaction", "AlreadyClaimedError: That transaction"),
        (
            'print(receipt.result, receipt.completed_at)\n            ```\n        """\n',
            'print(receipt)\n            ```\n        """\n',
        ),
    ],
)
def test_a_change_of_a_sync_verb_leaves_the_async_one_out_of_date(old, new):
    source, target = GUARD.read_text(), AIO.read_text()
    assert old in source
    assert written(source.replace(old, new), target) != target


def test_a_verb_without_an_async_body_is_refused():
    with pytest.raises(SystemExit, match="give each verb a body"):
        written(GUARD.read_text().replace("def get(", "def fetch("), AIO.read_text())


def test_the_bodies_stay_as_they_are_written_by_hand():
    source, target = GUARD.read_text(), AIO.read_text()
    body = "        # by hand\n        session = _plain_session(session)\n"
    changed = target.replace("        session = _plain_session(session)\n", body)
    assert changed != target
    assert written(source, changed) == changed


def test_both_guards_have_the_same_verbs_parameters_and_defaults():
    verbs = [name for name in vars(ExecutionGuard) if not name.startswith("_")]
    assert verbs == [name for name in vars(AsyncExecutionGuard) if not name.startswith("_")]
    for name in verbs:
        sync, twin = (inspect.signature(getattr(guard, name)) for guard in (ExecutionGuard, AsyncExecutionGuard))
        assert [(each.name, each.kind, each.default) for each in sync.parameters.values()] == [
            (each.name, each.kind, each.default) for each in twin.parameters.values()
        ]
