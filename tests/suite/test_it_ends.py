"""A run of tests always ends and names the test that did not; shown by small runs with this suite's settings."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import until


ROOT = Path(__file__).resolve().parents[2]

# No other plugin is loaded, so that workers start faster; the last one has a setting in pyproject.toml.
PLUGINS = ["xdist", "pytest_timeout", "no:cacheprovider", "pytest_alembic.plugin"]

CONFTEST = """
import time

pytest_plugins = ["support.watchdog"]
"""
PASSING = """
import pytest

@pytest.mark.parametrize("number", range(20))
def test_passing(number):
    pass
"""
EXITS = """
import os

def test_exits():
    os._exit(0)
"""
KILLED = """
import os, signal

def test_killed():
    os.kill(os.getpid(), signal.SIGKILL)
"""
HANGS = """
import threading

def test_hangs():
    print("it has come this far")
    threading.Event().wait()
"""
HANGS_FOR_SIGNALS = """
import signal, threading

def test_hangs_for_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    threading.Event().wait()
"""
LONG = """
import threading, pytest

@pytest.mark.timeout(60)
def test_long():
    threading.Event().wait(9)
"""
# A job in the background ignores the signal. The watchdog of the controller has heard of the test before this does.
INTERRUPTED = """
import pytest, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

@pytest.hookimpl(trylast=True)
def pytest_runtest_logstart(nodeid):
    if "test_hangs" in nodeid and "-n" in sys.argv:
        open({here!r}, "w").close()
"""
HANGS_FOR_ALL = """
import faulthandler, signal, threading

def test_hangs_for_all():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    faulthandler.cancel_dump_traceback_later()
    threading.Event().wait()
"""


@pytest.fixture
def run(tmp_path):
    """Run some tests with two workers, as `make test` does, with limits of seconds; they need no database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

    def run(*modules, conftest=CONFTEST, limits=(), meanwhile=lambda process: None):
        (tmp_path / "conftest.py").write_text(conftest)
        for number, source in enumerate((PASSING, *modules)):
            (tmp_path / f"test_{number}.py").write_text(source)
        settings = [word for limit in limits for word in ("-o", limit)]
        plugins = [word for name in PLUGINS for word in ("-p", name)]
        where = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", *where, *settings, *plugins, "-n", "2", "--dist", "worksteal", tmp_path],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                meanwhile(process)
                output, _ = process.communicate()
            except BaseException:
                process.kill()
                raise
        return process.returncode, output

    return run


def test_tests_that_die_or_hang_are_named_and_the_others_go_on(run):
    modules = (EXITS, KILLED, HANGS, HANGS_FOR_SIGNALS)
    status, output = run(*modules, limits=("timeout=6", "faulthandler_timeout=18"))
    assert status == 1, output
    for name in ("test_1.py::test_exits", "test_2.py::test_killed", "test_4.py::test_hangs_for_signals"):
        crashes = re.findall(rf"^worker '\w+' crashed while running '{name}'$", output, re.MULTILINE)
        assert len(crashes) == 1, output  # and it does not run again
    assert "in test_hangs_for_signals" in output  # the stack of each thread
    assert "FAILED test_3.py::test_hangs - Failed: Timeout" in output
    assert "it has come this far" in output
    assert "4 failed, 20 passed" in output


@pytest.mark.thorough
def test_a_test_that_has_a_longer_limit_keeps_it(run):
    status, output = run(LONG, limits=("timeout=6", "faulthandler_timeout=7"))
    assert status == 0, output
    assert "21 passed" in output


def test_an_interrupted_run_names_the_tests_that_were_running(run, tmp_path):
    here = tmp_path / "here"

    def interrupt(process):
        until("the test to run", lambda: process.poll() is not None or here.exists())
        process.send_signal(signal.SIGINT)

    status, output = run(HANGS, conftest=CONFTEST + INTERRUPTED.format(here=str(here)), meanwhile=interrupt)
    assert status == 2, output
    assert "The run was interrupted. They were running: test_1.py::test_hangs" in output


STANDSTILLS = {
    "test": (HANGS_FOR_ALL, "", "They were running: test_1.py::test_hangs_for_all"),
    "end": (
        "",
        "def pytest_sessionfinish(session):\n    if hasattr(session.config, 'workerinput'): time.sleep(1e6)\n",
        "They were running no test",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("where", STANDSTILLS)
def test_the_controller_ends_a_run_whose_workers_do_not_end(run, where):
    """A worker has no limit outside its tests, or in a test that removes all limits."""
    source, conftest, said = STANDSTILLS[where]
    status, output = run(source, conftest=CONFTEST + conftest, limits=["faulthandler_timeout=10"])
    assert status == 1, output
    assert "No worker has sent a message for 26 seconds" in output
    assert said in output  # the end is bounded, too: a slow machine may not come to the summary
