"""Breaks the promises, one at a time, and checks that a test fails for each: `make mutants`.

With words, only the mutants whose name or file contains one of them; `-n 4` runs four at once:
`make mutants ARGS="pipeline wait -n 4"`.

Every mutant is one replacement in a copy of the package. Its named tests run first, and the rest of the suite if those pass.
A mutant for which no test fails is a promise without a test, and makes this script fail. A mutant that no longer fits the code
makes it fail before anything runs.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutants.catalogue import MUTANTS  # noqa: E402
from sqlalchemy import create_engine, text  # noqa: E402
from sqlalchemy.pool import NullPool  # noqa: E402
from support import bounded  # noqa: E402
from support.servers import start  # noqa: E402


SUITE = [
    "tests/unit",
    "tests/effects/test_effects.py",
    "tests/effects/test_async.py",
    "tests/effects/test_between.py",
    "tests/effects/test_durability.py",
    "tests/effects/test_fence.py",
    "tests/effects/test_outbox.py",
    "tests/conformance",
    "tests/postgresql",
    "tests/crash/test_connection_loss.py",
    "tests/dashboard",
    "tests/cli/test_dashboard.py",
    "tests/cli/test_doctor_replication.py",
    "tests/aio/test_places.py",
    "tests/integrations",
    "tests/docs/test_security.py",
]
_ONE_AT_A_TIME = Lock()
# Seconds for one run of tests. The whole suite takes two to ten minutes.
_LIMIT = 3600
_WHOLE = ("-n", "2", "--dist", "loadfile")
_UNNAMED = ", which it does not name"


def main():
    chosen, at_once = choose()
    if problems := misfits(chosen):
        sys.exit(
            "these mutants no longer fit the code; fix them in tests/mutants/catalogue.py:\n" + "\n".join(problems)
        )
    if "SAFEAGENT_TEST_DATABASE_URL" in os.environ:
        sys.exit("mutants leave data behind, so they need separate servers: unset SAFEAGENT_TEST_DATABASE_URL")
    servers = [start() for _ in range(at_once)]  # one for each, since some mutants leave data behind
    free = SimpleQueue()
    for server in servers:
        free.put(server.url)

    def try_out(name):
        url = free.get()
        try:
            clean(url)
            return caught_by(chosen[name], url)
        finally:
            free.put(url)

    survivors, unnamed = [], []
    try:
        named = sorted({node for mutant in chosen.values() for node in nodes_of(mutant)})
        if failed := failure_of(ROOT / "safeagent_sa", servers[0].url, named, "-n", str(at_once), "--dist", "loadfile"):
            sys.exit(f"the unchanged code fails {failed}; fix that first")
        with ThreadPoolExecutor(at_once) as pool:
            for number, (name, found) in enumerate(zip(chosen, pool.map(try_out, chosen), strict=True), 1):
                print(f"{number:3}/{len(chosen)} {name}: {found or 'SURVIVED'}", flush=True)
                if found is None:
                    survivors.append(name)
                elif found.endswith(_UNNAMED):
                    unnamed.append(name)
        if unnamed and (failed := failure_of(ROOT / "safeagent_sa", servers[0].url, SUITE, *_WHOLE)):
            sys.exit(f"the unchanged code fails {failed}, so nothing is known of {unnamed}; fix that first")
    finally:
        for server in servers:
            server.stop()
    print(f"{len(chosen) - len(survivors)} passed, {len(survivors)} failed")
    sys.exit(1 if survivors else 0)


def choose():
    parser = argparse.ArgumentParser(description="Break the promises, and check that a test fails for each.")
    parser.add_argument("words", nargs="*", help="run only mutants whose name or file contains one of them")
    parser.add_argument("-n", type=int, default=2, help="how many run at once")
    given = parser.parse_args()
    for word in given.words:
        if not any(word in name + mutant.file for name, mutant in MUTANTS.items()):
            parser.error(f"no mutant's name or file contains {word!r}")
    return {
        name: mutant
        for name, mutant in MUTANTS.items()
        if not given.words or any(word in name + mutant.file for word in given.words)
    }, given.n


def misfits(mutants):
    """Return the mutants that do not fit the code, are no Python, or name a test that does not exist."""
    problems = []
    for name, mutant in mutants.items():
        path = ROOT / "safeagent_sa" / mutant.file
        source = path.read_text() if path.exists() else ""
        count = source.count(mutant.old)
        if count != 1:
            problems.append(f"{name}: its text occurs {count} times in {mutant.file}")
        elif not is_python(source.replace(mutant.old, mutant.new)):
            problems.append(f"{name}: the mutated {mutant.file} is not Python")
        problems += [f"{name}: the suite has no {test}" for test in mutant.tests.split() if not find(test)]
    return problems


def is_python(source):
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def nodes_of(mutant):
    return [node for test in mutant.tests.split() for node in find(test)]


def find(test):
    """Return the ids of the tests with a name, or the paths of a module with that name."""
    if test.endswith(".py"):
        return [str(module.relative_to(ROOT)) for module in modules() if module.name == test]
    name, bracket, parameters = test.partition("[")
    return [f"{path}::{name}{bracket}{parameters}" for path in where().get(name, ())]


@cache
def modules():
    found = [ROOT / path for path in SUITE]
    return [each for path in found for each in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])]


@cache
def where():
    found = {}
    for module in modules():
        for name in re.findall(r"^(?:async )?def (test_\w+)", module.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(module.relative_to(ROOT))
    return found


def caught_by(mutant, url):
    """Return a test that fails for a mutant, or None."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "safeagent_sa"
        shutil.copytree(ROOT / "safeagent_sa", package)
        path = package / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        found, note = failure_of(package, url, nodes_of(mutant)), ""
        if found is None:
            note = _UNNAMED
            with _ONE_AT_A_TIME:
                found = failure_of(package, url, SUITE, *_WHOLE)
        return found and found.partition(" - ")[0] + note


def failure_of(package, url, tests, *options):
    """Return the first test that fails with a package, and why, or None."""
    # -P: the working directory, which contains the unchanged package, does not come first
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-rfE", "--tb=no", "--timeout=60"]
    command += ["-p", "no:cacheprovider", *options, *tests]
    environment = os.environ | {
        "SAFEAGENT_TEST_DATABASE_URL": url.render_as_string(hide_password=False),
        "PYTHONPATH": str(package.parent),
        "COLUMNS": "300",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        done = bounded.run(command, limit=_LIMIT, cwd=ROOT, env=environment, **pipes)
    except subprocess.TimeoutExpired:
        return "the time-out"  # such as of a thread that outlives its test
    if done.returncode == 0:
        return None
    if re.search(r"^\++ Timeout \++$", done.stdout + done.stderr, re.MULTILINE):
        return "the time-out"
    found = re.search(r"^(?:FAILED|ERROR) \S*?/(test_\w+\.py::.*)$", done.stdout, re.MULTILINE)
    # 2: several processes stopped at the first failure. A mutant that cannot be imported, say, proves nothing.
    if done.returncode not in (1, 2) or found is None:
        sys.exit(f"pytest could not run the tests:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return found[1]


def clean(url):
    """Remove what a mutant has left on its server, so that it does not make the next one fail."""
    admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        for gid, database in connection.execute(text("SELECT gid, database FROM pg_prepared_xacts")).all():
            owner = create_engine(url.set(database=database), isolation_level="AUTOCOMMIT", poolclass=NullPool)
            with owner.connect() as there:
                there.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")
        left = "SELECT datname FROM pg_database WHERE datname LIKE 'safeagent_test_%'"
        for name in connection.scalars(text(left)).all():
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


if __name__ == "__main__":
    main()
