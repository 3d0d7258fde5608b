"""Checks the table of tracers in docs/logs.md, with the tracers: `make test-tracers`.

Each row is tried with each of its drivers, on the plain path and by default. The claim and the completion must be in the spans
where the app's own statement is. Without a tracer they are in none, and claims are pipelined: the control.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from sqlalchemy import create_engine  # noqa: E402
from support.patience import PATIENCE  # noqa: E402
from support.servers import start  # noqa: E402
from tracers.one import SETUPS  # noqa: E402

from safeagent_sa import metadata  # noqa: E402


def rows():
    """Return the set-up and the drivers of each row."""
    lines = (ROOT / "docs/logs.md").read_text().splitlines()
    table = lines[lines.index("| tracer | set up by | drivers | a claim then takes |") + 2 :]
    found = {}
    for line in table:
        if not line.startswith("| "):
            break
        _, setup, drivers, path = (cell.strip() for cell in line.strip("| ").split(" | "))
        assert path == "the plain path", line
        found[setup.strip("`")] = re.findall(r"`(\w+)`", drivers)
    return found


def tried(setup, driver, pipeline, url):
    command = [sys.executable, str(Path(__file__).with_name("one.py")), setup, driver, pipeline, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE, check=False)
    if done.returncode:
        return f"ended with {done.returncode}:\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def main():
    table = rows()
    assert table.keys() == SETUPS.keys() - {"nothing"}, "the table and one.py have other tracers"
    server, failures = start(), 0
    try:
        url = server.url.render_as_string(hide_password=False)
        engine = create_engine(server.url)
        metadata.create_all(engine)
        everything = {"app": True, "claim": True, "completion": True, "is_pipelined": False}
        cases = [(setup, driver, everything) for setup, drivers in table.items() for driver in drivers]
        nothing = dict.fromkeys(everything, False)
        cases += [("nothing", driver, nothing) for driver in ("psycopg", "psycopg_async")]
        for setup, driver, expected in cases:
            for pipeline in ("off", "auto"):
                is_pipelined = setup == "nothing" and pipeline == "auto"
                found = tried(setup, driver, pipeline, url)
                is_right = found == expected | {"is_pipelined": is_pipelined}
                failures += not is_right
                print(
                    f"{'ok  ' if is_right else 'FAIL'} {setup}, {driver}, pipeline {pipeline}"
                    + ("" if is_right else f": {found}")
                )
        metadata.drop_all(engine)
        engine.dispose()
    finally:
        server.stop()
    sys.exit(f"{failures} failed" if failures else 0)


if __name__ == "__main__":
    main()
