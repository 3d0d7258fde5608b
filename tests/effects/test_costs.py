"""What an effect costs: statements on every driver, round trips on the wire, and requests for the connection."""

import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session, sessionmaker
from support.aio import another_way
from support.app import pay
from support.effects import Died, Provider, die
from support.ports import KINDS, PORTS, ports
from support.wire import MessageProxy

from safeagent_sa import ExecutionGuard, ExecutionInDoubtError, ExecutionInProgressError, NotInDoubtError
from safeagent_sa.effects import not_executed, succeeded, unknown
from safeagent_sa.testing import expire_lease


class RateLimited(Exception):
    pass


def refuse(_effect):
    raise RateLimited


class Story:
    """What may happen to one effect, act by act. A story yields the number of statements and transactions of each act."""

    def __init__(self, port, look=0):
        self.port, self.provider, self.name = port, Provider(), "charge-1"
        # SQLite inserts in one statement and reads in another.
        self.look = look

    def fire(self, **options):
        effect = ExecutionGuard().effect("charge", retry_on=RateLimited, **options)
        return effect.execute(self.port.sessions, self.name, self.provider, payload=1)

    def relay(self, fn=None, **options):
        effect = ExecutionGuard().effect("mail", retry_on=RateLimited, **options)
        handlers = {"mail": (effect, fn or (lambda effect, payload: "sent"))}
        return ExecutionGuard().relay(self.port.sessions, handlers, initial_backoff=0.0).run_once(limit=1)

    def resolve(self, verdict):
        with self.port.sessions() as session, session.begin():
            return ExecutionGuard().resolve(session, self.name, verdict, by="alice")

    def crash(self, **options):
        self.provider.after = die
        with pytest.raises(Died):
            self.fire(**options)
        self.provider.after = None
        self.end_lease()

    def end_lease(self):
        with self.port.sessions() as session, session.begin():
            expire_lease(session.connection(), self.name)

    def order(self):
        self.name = "order-1/mail"
        with self.port.sessions() as session, session.begin():
            with ExecutionGuard().claim(session, "order-1", action="order") as execution:
                execution.effects.add("mail", {"to": "a"})
                execution.complete(pay(session, "order-1"))


def new(story):
    yield
    assert not story.fire().is_replay
    yield 3, 3


def replay(story):
    story.fire()
    yield
    assert story.fire().is_replay
    yield 1 + story.look, 1


def retry_after_a_safe_error(story):
    yield
    story.provider.before = refuse
    with pytest.raises(RateLimited):
        story.fire()
    yield 3, 3
    story.provider.before = None
    assert story.fire().result["charge"] == 1
    yield 4 + story.look, 3


def retry_of_what_may_have_happened(story):
    story.crash()
    yield
    assert story.fire(when_in_doubt="retry").result["charge"] == 2
    yield 4 + story.look, 3


def park(story):
    story.crash()
    yield
    for is_first in (True, False):
        with pytest.raises(ExecutionInDoubtError):
            story.fire()
        yield 1 + story.look + is_first, 1


def in_progress(story):
    story.crash()
    story.provider.before = lambda effect: effect.heartbeat()
    other, found = Story(story.port), []

    def meet(_effect):
        with pytest.raises(ExecutionInProgressError):
            other.fire()
        found.append(1)

    story.provider.after = meet
    yield
    story.fire(when_in_doubt="retry")
    assert found == [1]
    # the takeover, the mark, a heartbeat, another delivery, the outcome
    yield 4 + story.look + 1 + 1 + story.look, 5


def probe_that_finds_it(story):
    story.crash()
    yield
    assert story.fire(when_in_doubt=lambda effect: succeeded(7)).is_replay
    yield 2 + story.look + 1 + 1 + story.look, 3  # the takeover, the outcome, and a replay of it


def probe_that_finds_nothing(story):
    story.crash()
    yield
    assert story.fire(when_in_doubt=lambda effect: not_executed()).result["charge"] == 2
    yield 4 + story.look, 3


def probe_that_settles_nothing(story):
    story.crash()
    yield
    with pytest.raises(ExecutionInDoubtError):
        story.fire(when_in_doubt=lambda effect: unknown())
    yield 3 + story.look, 2


def relayed(story):
    story.order()
    yield
    assert story.relay() == 1
    yield 3, 3
    assert story.relay() == 0
    yield 1, 1


def relayed_again(story):
    story.order()
    yield
    for _ in range(2):
        assert story.relay(lambda effect, payload: refuse(effect)) == 1
        yield 3, 3
    assert story.relay() == 1
    yield 3, 3


def relayed_and_probed(story):
    story.order()
    with pytest.raises(Died):
        story.relay(lambda effect, payload: die(effect))
    story.end_lease()
    yield
    assert story.relay(when_in_doubt=lambda effect: not_executed()) == 1
    yield 3, 3


def relayed_and_parked(story):
    story.order()
    with pytest.raises(Died):
        story.relay(lambda effect, payload: die(effect))
    story.end_lease()
    yield
    assert story.relay() == 1
    yield 1, 1
    assert story.relay() == 0
    yield 1, 1


def resolve(story):
    story.crash()
    yield
    receipt = story.resolve(succeeded(7))
    yield 2, 1
    assert story.resolve(succeeded(7)) == receipt
    yield 1, 1
    with pytest.raises(NotInDoubtError):
        story.resolve(not_executed())
    yield 1, 1


STORIES = [
    new,
    replay,
    retry_after_a_safe_error,
    retry_of_what_may_have_happened,
    park,
    in_progress,
    probe_that_finds_it,
    probe_that_finds_nothing,
    probe_that_settles_nothing,
    relayed,
    relayed_again,
    relayed_and_probed,
    relayed_and_parked,
    resolve,
]


@ports(*KINDS[:3], among=[name for name in PORTS if name != "postgresql_key"])
@pytest.mark.parametrize("story", STORIES)
def test_each_transaction_is_one_statement_unless_it_takes_over_an_earlier_attempt(port, statements, story):
    acts = story(Story(port, look=port.name == "sqlite"))
    next(acts)
    for number, (expected, _) in enumerate(_counted(acts, statements.clear)):
        sent = [each for each in statements if not each.startswith("BEGIN")]
        assert len(sent) == expected, (number, sent)


@pytest.fixture(params=["psycopg", "psycopg_async", "asyncpg"])
def wire(request, postgresql):
    url = make_url(postgresql.url).set(drivername=f"postgresql+{request.param}")
    proxy = MessageProxy(url.render_as_string(hide_password=False))
    port = another_way(postgresql, proxy.url, pool_size=1, max_overflow=0, pool_reset_on_return=None)
    port.proxy = proxy
    yield port
    port.dispose()
    proxy.close()


@pytest.mark.parametrize("story", [each for each in STORIES if each is not in_progress])  # it has two callers
def test_only_begin_the_statements_and_commit_are_round_trips(wire, story):
    for _ in range(7):  # the first ones prepare their statements
        wire.clear()
        acts = story(Story(wire))
        next(acts)
        counts, before = [], wire.proxy.round_trips
        for statements, transactions in acts:
            counts.append((wire.proxy.round_trips - before, statements + 2 * transactions))
            before = wire.proxy.round_trips
    assert [found for found, _ in counts] == [expected for _, expected in counts]


def _counted(acts, reset):
    reset()
    for expected in acts:
        yield expected
        reset()


class Counted(Session):
    requests = 0

    def connection(self, *arguments, **options):
        Counted.requests += 1
        return super().connection(*arguments, **options)


@pytest.mark.parametrize("port", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("story", STORIES)
def test_each_transaction_asks_for_its_connection_once(port, story):
    acts = story(Story(port))
    next(acts)
    port.sessions = sessionmaker(port.engine, class_=Counted)

    def reset():
        Counted.requests = 0

    for number, (_, transactions) in enumerate(_counted(acts, reset)):
        assert Counted.requests == transactions, number
