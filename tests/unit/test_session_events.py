"""The guard listens to one Session, past SQLAlchemy's registry of listeners, and as `event.listen` would."""

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from safeagent_sa._transaction.session_events import listen


@pytest.fixture
def engine():
    made = create_engine("sqlite://", poolclass=StaticPool)
    yield made
    made.dispose()


def commit(session):
    session.connection()
    session.commit()


def test_a_listener_hears_of_its_own_session_in_the_order_of_all_listeners(engine):
    heard = []
    with Session(engine) as session, Session(engine) as other:
        event.listen(session, "before_commit", lambda _: heard.append("the app's, before"))
        listen(session, "before_commit", heard.append)
        listen(session, "after_begin", lambda *arguments: heard.append(len(arguments)))
        event.listen(session, "before_commit", lambda _: heard.append("the app's, behind"))
        commit(other)
        assert heard == []
        commit(session)
        assert heard == [3, "the app's, before", session, "the app's, behind"]
        commit(session)
        assert heard[4:] == heard[:4]


def test_listeners_of_the_class_are_called_too(engine):
    class Own(Session):
        pass

    heard = []
    event.listen(Own, "before_commit", lambda _: heard.append("class"))
    with Own(engine) as session:
        listen(session, "before_commit", lambda _: heard.append("session"))
        commit(session)
    assert heard == ["class", "session"]


def test_this_sqlalchemy_has_the_list_that_is_written_to(engine, monkeypatch):
    """Where it has not, a claim takes 100,000 instructions more: look for what has taken its place."""
    monkeypatch.setattr("safeagent_sa._transaction.session_events.event", None)
    with Session(engine) as session:
        listen(session, "before_commit", print)


def test_without_it_event_listen_does_the_same(engine):
    class Other(Session):
        """A Session whose list of listeners is somewhere else; `event.listen` finds it."""

        hidden = True

        @property
        def dispatch(self):
            if self.hidden:
                self.hidden = False
                return object()
            if "dispatch" not in vars(self):
                Session.__dict__["dispatch"].__get__(self, Session)
            return vars(self)["dispatch"]

    heard = []
    with Other(engine) as session:
        note = heard.append
        listen(session, "before_commit", note)
        assert event.contains(session, "before_commit", note)
        commit(session)
    assert heard == [session]
