"""Every queue delivers again, for real: two rows without the guard, and one with it.

Workers are killed with SIGKILL, brokers lose their power, networks break; nothing is simulated.
"""

import os

import pytest
from queues.systems import (
    CeleryRabbitMQ,
    CeleryRedis,
    DramatiqRabbitMQ,
    DramatiqRedis,
    FastStreamRabbitMQ,
    Procrastinate,
    TaskiqRedis,
)
from support.waiting import until


pytestmark = pytest.mark.queues

SYSTEMS = {
    "celery-redis": (CeleryRedis, "redis"),
    "celery-rabbitmq": (CeleryRabbitMQ, "rabbitmq"),
    "dramatiq-rabbitmq": (DramatiqRabbitMQ, "rabbitmq"),
    "dramatiq-redis": (DramatiqRedis, "snapshotredis"),
    "taskiq-redis": (TaskiqRedis, "redis"),
    "procrastinate": (Procrastinate, None),
    "faststream-rabbitmq": (FastStreamRabbitMQ, "rabbitmq"),
}


@pytest.fixture(params=SYSTEMS)
def system(request, hub, tmp_path, postgresql):
    kind, broker = SYSTEMS[request.param]
    made = kind(request.getfixturevalue(broker) if broker else None, postgresql.url, hub, tmp_path)
    yield made
    made.close()
    if getattr(request.node, "rep_call_failed", True):
        print(made.logs())


guarded_or_not = pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "unguarded"])


def rows(postgresql, order_id=1):
    return postgresql.payments(f"order-{order_id}")


def check_rows(postgresql, is_one):
    """One row with the guard; without it two, or more where a loaded machine makes the broker deliver once more."""
    assert rows(postgresql) == 1 if is_one else rows(postgresql) >= 2


def end(system):
    """Nothing may be left behind.

    A broker with a visibility time-out delivers a message once more where a loaded machine is slower than that, so the workers
    go on until there is none.
    """
    system.wait()
    system.finish()
    assert system.left() == 0, system.logs()


@guarded_or_not
def test_a_worker_killed_behind_its_commit(system, hub, postgresql, is_guarded):
    worker = system.work(is_guarded=is_guarded, gates="committed")
    system.send("pay", 1)
    hub.wait("committed")
    worker.kill()
    assert rows(postgresql) == 1

    system.work(is_guarded=is_guarded)
    if system.name in ("taskiq", "procrastinate"):  # which do not look for it by themselves
        system.redeliver()
    hub.wait("Replayed" if is_guarded else "committed")
    end(system)
    check_rows(postgresql, is_guarded)


@guarded_or_not
def test_a_redelivery_while_the_first_one_runs(system, hub, postgresql, is_guarded):
    system.work(is_guarded=is_guarded, gates="running")
    system.work(is_guarded=is_guarded, gates="running")
    system.send("pay", 1)
    first = hub.wait("running")
    system.redeliver(first)
    second = hub.wait("InProgress" if is_guarded else "running")
    system.resume(first)
    first.release()
    if is_guarded:
        hub.wait("Replayed")
    else:
        second.release()
        hub.wait("committed")
        hub.wait("committed")
    end(system)
    check_rows(postgresql, is_guarded)


@guarded_or_not
def test_a_producer_that_sends_twice(system, hub, postgresql, is_guarded):
    system.work(is_guarded=is_guarded)
    for _ in range(2):
        system.send("pay_keyed", 1)
    hub.wait("committed")
    hub.wait("Replayed" if is_guarded else "committed")
    end(system)
    check_rows(postgresql, is_guarded)


def test_a_conflict_is_for_the_dead_letters(system, hub, postgresql):
    system.work()
    system.send("pay_keyed", 1, amount=100)
    hub.wait("committed")
    system.send("pay_keyed", 1, amount=999)
    hub.wait("Conflict")
    system.send("pay_keyed", 2)
    hub.wait("committed")  # the queue goes on
    end(system)
    assert (rows(postgresql), rows(postgresql, 2)) == (1, 1)
    assert system.dead_letters() == 1
    assert "was used for the action" in system.logs()


def test_an_error_of_the_function_is_retried_by_the_queue_under_the_same_id(system, hub, postgresql, tmp_path):
    failed = tmp_path / "failed"
    system.work(FAILS_UNTIL=str(failed))
    system.send("pay_keyed", 1)
    hub.wait("committed")
    assert failed.exists()
    end(system)
    assert rows(postgresql) == 1
    assert postgresql.requests() == [("order:1:pay", "completed")]


@guarded_or_not
def test_a_broker_that_loses_its_power(system, hub, postgresql, is_guarded):
    """The row is committed, and the acknowledgement finds no broker, or one that forgets it."""
    system.work(is_guarded=is_guarded, gates="committed")
    system.send("pay", 1)
    system.restart(hub.wait("committed"))
    system.recover(is_guarded=is_guarded, gates="committed")
    if system.forgets_acknowledgements:
        if is_guarded:
            hub.wait("Replayed")
        hub.wait("committed").release()  # of a replay as well, whose transaction ends in order
    end(system)
    check_rows(postgresql, is_guarded or not system.forgets_acknowledgements)

    system.work(is_guarded=is_guarded)
    system.send("pay", 2)  # the queue goes on
    hub.wait("committed").release()
    end(system)
    assert rows(postgresql, 2) == 1


def wait_for_the_end_of(pid):
    def has_ended():  # it is no child of this process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(f"the end of process {pid}", has_ended)


@pytest.mark.parametrize("acks", ["1", "0"], ids=["acknowledged", "comes again"])
def test_a_task_of_celery_that_its_hard_time_limit_kills(rabbitmq, hub, postgresql, tmp_path, acks):
    """Acknowledged, as by default, its message is lost: the guard can only warn. Else it comes again, and is executed once."""
    system = CeleryRabbitMQ(rabbitmq, postgresql.url, hub, tmp_path)
    try:
        system.work(gates="running", TIME_LIMIT="8", ACKS=acks)
        system.send("pay", 1)
        wait_for_the_end_of(hub.wait("running").pid)
        if acks == "1":
            system.send("pay", 2)
        hub.wait("running").release()
        hub.wait("committed")
        end(system)
        assert (rows(postgresql), rows(postgresql, 2)) == ((0, 1) if acks == "1" else (1, 0))
        assert "Hard time limit" in system.logs()
    finally:
        system.close()
