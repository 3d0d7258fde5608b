"""`safeagent-sa demo agents`, as a person runs it."""

import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_demo_keeps_its_promises_and_shows_what_happens_without_them(database, postgresql):
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": postgresql.url if database == "postgresql" else ""}
    done = subprocess.run(
        [sys.executable, "-m", "safeagent_sa", "demo", "agents"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓ guarded") == 4
    rows = re.findall(r"^ (\d)\b.*?  +(\S.*?)  +(\S.*?) *$", done.stdout.partition("The books")[2], re.MULTILINE)
    assert rows == [
        ("1", "25, 25, 30", "25"),
        ("2", "40, 40", "40"),
        ("3", "charged 2 times", "charged once"),
    ]
