"""Processes that race for one id, and processes that are killed at every step of a guarded transaction."""

import pytest
from support.app import deliver
from support.ports import ports, usual
from support.worker import STEPS


# psycopg speaks through libpq in both of its modes, and SQLite through the same library.
DRIVERS = ["sqlite", "postgresql", "asyncpg", "pipelined", "pipelined_async"]


@ports("pipelined", among=DRIVERS)
@usual("callers", [6], among=[6, 16])
def test_processes_that_race_for_one_id_execute_it_once(port, worker, callers):
    workers = [worker(port, "hot", stop_at="start") for _ in range(callers)]
    for each in workers:
        each.wait_until_stopped()
    for each in workers:
        each.go_on()
    answers = [each.answer() for each in workers]

    assert len({answer["pid"] for answer in answers}) == callers
    assert sorted(answer["is_replay"] for answer in answers) == [False] + [True] * (callers - 1)
    assert {answer["result"]["receipt"] for answer in answers} == {answers[0]["result"]["receipt"]}
    assert deliver(port, "hot").result == answers[0]["result"]
    assert port.payments("hot") == 1
    assert port.requests() == [("hot", "completed")]


@ports("sqlite", "pipelined", among=DRIVERS)
@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_any_step_leaves_all_or_nothing(port, worker, step):
    killed = worker(port, "order-1", stop_at=step)
    killed.wait_until_stopped()
    killed.kill()

    stored = step == "committed"
    retry, again = deliver(port, "order-1"), deliver(port, "order-1")

    assert retry.is_replay is stored
    assert again.is_replay
    assert again.result == retry.result
    assert port.payments("order-1") == 1
    assert port.requests() == [("order-1", "completed")]


@ports("pipelined", among=["postgresql", "pipelined"])
@pytest.mark.parametrize("step", ["claimed", "written", "settled"])
def test_a_waiting_process_takes_over_from_a_killed_one(port, worker, step):
    holder = worker(port, "order-1", stop_at=step)
    holder.wait_until_stopped()
    waiter = worker(port, "order-1", stop_at="begun")
    waiter.wait_until_stopped()
    waiter.go_on()
    holder.kill()
    answer = waiter.answer()

    assert answer["is_replay"] is False
    assert deliver(port, "order-1").result == answer["result"]
    assert port.payments("order-1") == 1
