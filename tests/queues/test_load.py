"""Ten thousand messages while workers are killed at random: each has one row, and none is left behind."""

import os
import random
import time

import pytest
from queues.systems import DramatiqRabbitMQ
from sqlalchemy import text


pytestmark = pytest.mark.queues

MESSAGES, WORKERS = int(os.environ.get("SAFEAGENT_LOAD", "10000")), 4
KILL_AFTER = 600  # rows

# Seconds; a quarter of it is enough on a machine that is not loaded.
LIMIT = 900


@pytest.mark.timeout(LIMIT + 60)
def test_every_message_has_one_row_however_many_workers_die(rabbitmq, postgresql, hub, tmp_path):
    chance = random.Random(20)
    system = DramatiqRabbitMQ(rabbitmq, postgresql.url, hub, tmp_path)
    quiet = {"HUB": ""}
    kills, next_kill = 0, KILL_AFTER
    try:
        # before the workers start: where sending is slow, nothing would be left to do when the first one is killed
        system.run(f"import sending; sending.dramatiq_many({MESSAGES})")
        begun = time.monotonic()
        alive = [system.work(**quiet) for _ in range(WORKERS)]
        while (paid := count(postgresql, "count(*)")) < MESSAGES:
            assert time.monotonic() - begun < LIMIT, f"{paid} of {MESSAGES} in {LIMIT} s"
            if paid >= next_kill:
                victim = alive.pop(chance.randrange(WORKERS))
                victim.kill()
                alive.append(system.work(**quiet))
                kills, next_kill = kills + 1, next_kill + KILL_AFTER
            time.sleep(0.02)  # the database has no event for it
        while system.left():
            assert time.monotonic() - begun < LIMIT, f"{system.left()} messages are left"
            time.sleep(0.1)
        system.finish()
        seconds = time.monotonic() - begun
        assert system.left() == system.dead_letters() == 0
    finally:
        system.close()

    assert count(postgresql, "count(*)") == count(postgresql, "count(DISTINCT reference)") == MESSAGES
    with postgresql.engine.connect() as connection:
        query = "SELECT count(*), count(*) FILTER (WHERE status = 'completed') FROM execution_requests"
        assert connection.execute(text(query)).one() == (MESSAGES, MESSAGES)
    assert kills >= MESSAGES // KILL_AFTER - 1
    print(f"{MESSAGES} messages, {WORKERS} workers, {kills} killed, {seconds:.0f} s")


def count(postgresql, what):
    with postgresql.engine.connect() as connection:
        return connection.scalar(text(f"SELECT {what} FROM payments"))
