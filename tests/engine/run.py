"""Asks one engine for every promise, and prints a verdict: python tests/engine/run.py URL.

passed      the tests of the promise have passed there
failed      at least one has not; its name and its reason are above
not offered the engine lacks what the promise needs, and the guard says so
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from sqlalchemy import inspect
from sqlalchemy.exc import ArgumentError, SQLAlchemyError


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.promises import PROMISES, Promise
from support.app import make_engine

from safeagent_sa import Capabilities, SafeAgentError, capabilities


TESTS = Path(__file__).resolve().parents[1]
PASSED, FAILED, NOT_OFFERED = "passed", "failed", "not offered"


class Verdict(NamedTuple):
    """What was found out about one promise."""

    promise: Promise
    verdict: str
    why: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("make engine URL=...", description="Ask an engine for every promise of the guard.")
    parser.add_argument("url", help="an empty database; its role must be allowed to create tables there")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in PROMISES], metavar="PROMISE")
    parser.add_argument("--partitions", type=int, default=0, help="ask it on a table in so many partitions")
    parser.add_argument("--expect", metavar="ENGINE", help="fail where the engine is another one, such as Citus")
    return parser.parse_args()


def asked(url: str, expected: str | None) -> Capabilities:
    """Return what the engine can do, or end the program with what to do about it."""
    try:
        engine = make_engine(url)
        found = capabilities(engine)
        there = inspect(engine).has_table("execution_requests")
        engine.dispose()
    except SafeAgentError as error:
        sys.exit(f"{NOT_OFFERED}: every promise, since the guard refuses this engine.\n{error}")
    except (SQLAlchemyError, ArgumentError, ImportError) as error:
        sys.exit(f"no verdict, since the engine was not reached: {error}")
    if expected is not None and found.engine != expected:
        sys.exit(f"no verdict: this is {found.engine}, not {expected}: {found.version}")
    if there:
        sys.exit(
            "no verdict: the database has a table execution_requests. Give an empty database, which the tests may fill."
        )
    return found


def run(url: str, promises: Sequence[Promise], partitions: int, results: Path) -> int:
    """Run the tests of some promises in another process, and show its output; return its exit code."""
    tests = dict.fromkeys(str(TESTS / test) for promise in promises for test in promise.tests)
    settings = {"SAFEAGENT_ENGINE_URL": url, "SAFEAGENT_ENGINE_PARTITIONS": str(partitions)}
    options = ["-q", "-m", "engine", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={results}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=TESTS.parent, env=os.environ | settings, check=False).returncode


def judged(promise: Promise, results: Sequence[ET.Element]) -> Verdict:
    """Return the verdict on one promise from the results of all tests."""
    mine = [case for case in results if any(_is_of(case, test) for test in promise.tests)]
    wrong = [case for case in mine if case.find("failure") is not None or case.find("error") is not None]
    if wrong:
        names = sorted({str(case.get("name")).partition("[")[0] for case in wrong})
        return Verdict(
            promise, FAILED, f"{len(wrong)} of {len(mine)} tests: {', '.join(names[:3])}" + (" …" * (len(names) > 3))
        )
    if not mine:
        return Verdict(promise, FAILED, "none of its tests has run")
    return Verdict(promise, PASSED, f"{len(mine)} test{'s' if len(mine) > 1 else ''}")


def _is_of(case: ET.Element, test: str) -> bool:
    file, _, name = test.partition("::")
    module = file.removesuffix(".py").replace("/", ".")
    is_module = f".{case.get('classname')}".endswith(f".{module}")
    return is_module and (not name or str(case.get("name")).partition("[")[0] == name)


def main() -> None:
    options = arguments()
    found = asked(options.url, options.expect)
    chosen = [each for each in PROMISES if options.only is None or each.name in options.only]
    lacking = {each: why for each in chosen if (why := each.lacks(found))}
    asked_for = [each for each in chosen if each not in lacking]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.xml"
        code = run(options.url, asked_for, options.partitions, path) if asked_for else 0
        cases = list(ET.parse(path).iter("testcase")) if path.exists() else []
    verdicts = [
        Verdict(each, NOT_OFFERED, lacking[each]) if each in lacking else judged(each, cases) for each in chosen
    ]
    print(f"\n{found.engine}, locking = {found.locking}: {found.version}\n")
    for each in verdicts:
        print(f"{each.verdict:<12} {each.promise.name:<13} {each.promise.says}\n{'':26} {each.why}")
    if code or any(each.verdict == FAILED for each in verdicts):
        sys.exit(f"\nThis engine does not keep every promise that it offers (pytest ended with {code}).")


if __name__ == "__main__":
    main()
