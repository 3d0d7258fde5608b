"""Ends a run that has stopped making progress, and names the tests that its workers were running.

There are three limits, each for cases that the one before does not reach. A signal interrupts a test that takes too long, and
the test fails with its output (`timeout` in pyproject.toml). If the signal does not get through, the worker prints the stack
of each thread and ends (`faulthandler_timeout`, longer where a test has a longer limit); pytest-xdist names the test and starts
another worker. If the controller hears from no worker for even longer, it ends the run.
"""

from __future__ import annotations

import faulthandler
import signal
from contextlib import suppress
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key


class Watchdog:
    """An alarm in the controller of pytest-xdist, reset by every message from a worker."""

    def __init__(self, config: pytest.Config) -> None:
        # Longer than the limit after which a worker ends, or the name of its test would be lost; no mark beside `stress` exceeds
        # 900 s, which a worker outlives by 100.
        self.limit = int(2.6 * float(config.getini("faulthandler_timeout")))
        self.begun: set[str] = set()
        self.ended: set[str] = set()
        self.verdict = ""

    def pytest_sessionstart(self) -> None:
        signal.signal(signal.SIGALRM, self._end_the_run)
        signal.alarm(self.limit)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Ignore a failed message to a worker that has just died; its channel reports the end, and the run goes on."""
        send = node.sendcommand

        def send_to_the_living(name: str, **arguments: Any) -> None:
            with suppress(OSError):
                send(name, **arguments)

        node.sendcommand = send_to_the_living

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self) -> None:
        signal.alarm(self.limit)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self) -> None:
        signal.alarm(self.limit)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.begun.add(nodeid)
        signal.alarm(self.limit)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.ended.add(nodeid)
        signal.alarm(self.limit)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self.ended.add(crashitem)

    def pytest_keyboard_interrupt(self) -> None:
        """Say where the workers were, such as for `.ci/run`, which interrupts what takes too long."""
        self.verdict = self.verdict or f"The run was interrupted. {self._where_they_were()}"

    def _end_the_run(self, *_: object) -> None:
        self.verdict = f"No worker has sent a message for {self.limit} seconds. {self._where_they_were()}"
        self._the_end_is_bounded()
        pytest.exit(self.verdict, returncode=1)

    def _where_they_were(self) -> str:
        at = sorted(self.begun - self.ended)
        if at:
            return f"They were running: {', '.join(at)}"
        return "They were running no test: setting up, collecting or ending."

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._the_end_is_bounded()

    def _the_end_is_bounded(self) -> None:
        """Let the signal end the process if the end of the run hangs as well."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(self.limit, 60))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.verdict:
            terminalreporter.section("where the run has ended")
            terminalreporter.write_line(self.verdict)

    def pytest_unconfigure(self) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test with a longer limit than the usual one have it: pytest's second limit knows no marks."""
    usual, second = (float(item.config.getini(name)) for name in ("timeout", "faulthandler_timeout"))
    mark = item.get_closest_marker("timeout")
    own = float(mark.args[0]) if mark else usual
    if own > usual and second:
        stderr = item.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(own + second - usual, file=stderr, exit=True)


def pytest_configure(config: pytest.Config) -> None:
    # The controller only: in the process that runs the tests, this signal belongs to pytest-timeout.
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watchdog(config))
