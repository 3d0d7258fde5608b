"""Many processes on one SQLite file, some of them killed at random moments; nothing is lost and nothing runs twice."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.app import deliver
from support.patience import PATIENCE
from support.ports import usual
from support.waiting import line_of


CLIENT = Path(__file__).resolve().parents[1] / "support" / "client.py"
SEED = 20261122


def start(port, names, log, **environment):
    return subprocess.Popen(
        [sys.executable, str(CLIENT), port.url, str(log), *names],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(port, tmp_path, *, rounds, ids, processes):
    chance = random.Random(SEED)
    kills = 0
    for number in range(rounds):
        names = [f"order-{number}-{index}" for index in range(ids)]
        clients = []
        for index in range(processes):
            order = names * 2
            chance.shuffle(order)
            # On SQLite half of them begin as readers, and become the writer at the claim.
            environment = {"READS_FIRST": "1"} if port.name == "sqlite" and index % 2 else {}
            clients.append(start(port, order, tmp_path / f"{number}-{index}.log", **environment))
        for client in chance.sample(clients, processes // 4):
            for _ in range(chance.randrange(1, ids)):  # after so many answers, at any step of the next one
                line_of(client, "an answer")
            client.kill()
            kills += 1
        for client in clients:
            _, errors = client.communicate(timeout=PATIENCE)
            assert client.returncode in (0, -9), errors
    return kills


def check(port, tmp_path):
    """Every acknowledged answer is the stored receipt, and every id was executed once."""
    stored = {}
    acknowledged = 0
    for path in tmp_path.glob("*.log"):
        lines = path.read_text().split("\n")[:-1]  # the last line may be torn
        for line in lines:
            name, result = json.loads(line)
            acknowledged += 1
            if name not in stored:
                stored[name] = deliver(port, name).result
                assert port.payments(name) == 1
            assert result == stored[name]
    requests = port.requests()
    assert {name for name, _ in requests} >= set(stored)
    assert {status for _, status in requests} == {"completed"}
    return acknowledged, len(stored)


@usual("processes", [4], among=[4, 8, 16])
def test_processes_with_kills(sqlite, tmp_path, processes):
    kills = run(sqlite, tmp_path, rounds=1, ids=12, processes=processes)
    acknowledged, ids = check(sqlite, tmp_path)
    print(f"\nseed {SEED}: {kills} kills, {acknowledged} acknowledged answers of {ids} ids")

    assert kills == processes // 4
    assert acknowledged > ids == 12


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("port", ["sqlite", "postgresql"], indirect=True)
def test_sixteen_processes_with_kills_for_long(port, tmp_path):
    kills = run(port, tmp_path, rounds=20, ids=40, processes=16)
    acknowledged, ids = check(port, tmp_path)
    print(f"\nseed {SEED}: {kills} kills, {acknowledged} acknowledged answers of {ids} ids")
