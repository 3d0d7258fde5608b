"""The tutorial of docs/fault-explorer.md, followed exactly in a new project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.ports import usual_ports


DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "fault-explorer.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
FIXED = re.search(r"^```python\n# in tickets.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).group(1)
REPORT, CLOSING = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(params=usual_ports(["sqlite"], among=["sqlite", "postgresql"]))
def project(request, tmp_path):
    """A folder with the page's files, and a way to run its commands."""
    for name in ("tickets.py", "test_tickets.py", "test_charges.py"):
        (tmp_path / name).write_text(FILES[name])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    if request.param == "postgresql":
        url = request.getfixturevalue("new_database")()
        environment["DATABASE_URL"] = url.render_as_string(hide_password=False)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    run.folder, run.database = tmp_path, request.param
    return run


def fix(project):
    tickets = FILES["tickets.py"]
    (project.folder / "tickets.py").write_text(tickets[: tickets.index("def sell_ticket")] + FIXED)


def test_the_explorer_finds_the_mistake_and_passes_the_fixed_handler(project):
    status, output = project("-m", "pytest", "test_tickets.py")
    assert status == 1
    assert "1 failed, 1 passed" in output
    report = "".join(f"{line[8:].rstrip()}\n" for line in output.splitlines() if line.startswith("E"))
    assert "VIOLATION: only a part of the business rows was committed (invoices: 0 row(s) too many, 1 missing" in report
    if project.database == "sqlite":  # the page shows the real output
        assert REPORT.strip() in report, report
    fix(project)
    status, output = project("-m", "pytest", "-rP", "test_tickets.py")
    assert status == 0, output
    assert "2 passed" in output
    if project.database == "sqlite":
        assert CLOSING.strip() in output
    assert ", violations: 0" in output


@pytest.mark.parametrize("project", ["sqlite"], indirect=True)
def test_the_page_shows_the_picture_that_the_report_draws(project):
    code = (
        "import safeagent_sa; from tickets import *; from safeagent_sa.testing import explore_faults;"
        "safeagent_sa.metadata.create_all(engine); Base.metadata.create_all(engine);"
        "print(explore_faults(lambda: sell_ticket('order-1', 'A12'), SessionLocal, check=False).to_svg(), end='')"
    )
    status, output = project("-c", code)
    assert status == 0, output
    assert output == (DOCS / "fault-explorer.svg").read_text()


@pytest.mark.thorough
def test_an_effect_inside_the_transaction_is_found(project):
    status, output = project("-m", "pytest", "test_charges.py")
    assert status == 0, output


@pytest.mark.thorough
@pytest.mark.parametrize("project", ["postgresql"], indirect=True)
def test_each_worker_has_its_own_database(project):
    fix(project)
    (project.folder / "conftest.py").write_text(FILES["conftest.py"])
    status, output = project("-m", "pytest", "-n", "2", "test_tickets.py", "test_charges.py")
    assert status == 0, output
    assert "3 passed" in output
