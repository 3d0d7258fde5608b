"""A wait that does not end fails, and says what it waited for."""

import asyncio

import pytest
from support import waiting
from support.waiting import async_until, until


WAYS = {"sync": until, "async": lambda what, look: asyncio.run(async_until(what, look))}


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_does_not_end_says_what_it_waited_for(way, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0)
    with pytest.raises(AssertionError, match="for the second payment"):
        WAYS[way]("the second payment", list)


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_ends_with_the_first_look_that_finds_something(way):
    found = iter([0, None, 1, 2])
    WAYS[way]("the third look", lambda: next(found))
    assert list(found) == [2]
