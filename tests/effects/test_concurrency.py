"""Many deliveries of one effect at the same moment, by threads and by tasks, at every isolation level."""

import threading

import pytest
from sqlalchemy import create_engine
from support.app import Port
from support.effects import Provider
from support.patience import PATIENCE
from support.ports import on_each_kind

from safeagent_sa import ExecutionGuard, ExecutionInProgressError


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_eight_threads_make_one_call(postgresql, level):
    engine = create_engine(postgresql.url, isolation_level=level, pool_size=8)
    port = Port("postgresql", postgresql.url, engine)
    for number in range(5):
        provider, answers = Provider(), []

        def fire(provider=provider, answers=answers, number=number):
            effect = ExecutionGuard().effect("charge")
            try:
                answers.append(effect.execute(port.sessions, f"charge-{number}", provider).result["charge"])
            except ExecutionInProgressError:
                answers.append(None)

        port.in_parallel([fire] * 8)
        assert len(provider.charges) == 1
        assert set(answers) <= {1, None}
        assert 1 in answers
    engine.dispose()


@on_each_kind
def test_eight_deliveries_make_one_call_on_every_driver(port):
    provider, answers = Provider(), []

    def fire():
        try:
            found = ExecutionGuard().effect("charge").execute(port.sessions, "charge-1", provider)
            answers.append(found.result["charge"])
        except ExecutionInProgressError:
            answers.append(None)

    port.in_parallel([fire] * 8)
    assert len(provider.charges) == 1
    assert set(answers) <= {1, None}


def test_another_delivery_is_refused_at_once_during_the_call(postgresql):
    """It does not wait in the database for a call that may take minutes."""
    calling, go_on = threading.Event(), threading.Event()
    provider = Provider()

    def wait(_effect):
        calling.set()
        assert go_on.wait(PATIENCE)

    provider.before = wait
    effect = ExecutionGuard().effect("charge", lease=7200)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(effect.execute(postgresql.sessions, "charge-1", provider).result)
    )
    thread.start()
    assert calling.wait(PATIENCE)
    with pytest.raises(ExecutionInProgressError) as refused:
        effect.execute(postgresql.sessions, "charge-1", provider)
    assert refused.value.retry_after > 3600
    go_on.set()
    thread.join(PATIENCE)
    assert results == [{"charge": 1, "amount": 100}]
