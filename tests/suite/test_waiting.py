"""A wait that does not end fails, and says what it waited for."""

import asyncio
import sys
from subprocess import PIPE, Popen

import pytest
from support import waiting
from support.waiting import async_until, line_of, until


WAYS = {"sync": until, "async": lambda what, look: asyncio.run(async_until(what, look))}


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_does_not_end_says_what_it_waited_for(way, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0)
    with pytest.raises(AssertionError, match="for the second payment"):
        WAYS[way]("the second payment", list)


def test_what_was_wrong_at_the_last_look_is_named(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0)
    with pytest.raises(AssertionError, match="for the server") as waited:
        until("the server", lambda: 1 / 0, but=ZeroDivisionError)
    assert isinstance(waited.value.__cause__, ZeroDivisionError)


ENDS, HANGS = "sys.exit('in words')", "import threading; threading.Event().wait()"


@pytest.mark.parametrize(("then", "patience", "words"), [(ENDS, 60, ": in words"), (HANGS, 1, ": $")])
def test_a_program_that_prints_no_line_is_ended_and_its_errors_are_shown(monkeypatch, then, patience, words):
    command = [sys.executable, "-c", f"import sys; print('one', flush=True); {then}"]
    process = Popen(command, stdout=PIPE, stderr=PIPE, text=True)
    assert line_of(process, "the first line") == "one"
    monkeypatch.setattr(waiting, "PATIENCE", patience)
    with pytest.raises(AssertionError, match=rf"where the second line was expected, of \[.*\]{words}"):
        line_of(process, "the second line")
    assert process.returncode is not None


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_ends_with_the_first_look_that_finds_something(way):
    found = iter([0, None, 1, 2])
    WAYS[way]("the third look", lambda: next(found))
    assert list(found) == [2]
