"""Keywords of the business function: they reach it, or are refused by name; none becomes an option by accident."""

import functools
import inspect

import pytest
from support.ports import before_any_sql, on_each_kind

from safeagent_sa import ExecutionGuard, UnsupportedFunctionError
from safeagent_sa.aio import AsyncExecutionGuard
from safeagent_sa.effects import AsyncEffect, Effect


guard = ExecutionGuard()


def by_execute(port, fn, /, *args, **kwargs):
    with port.sessions() as session, session.begin():
        return guard.execute(session, "order-1", fn, *args, action="pay", **kwargs).result


def by_run_transaction(port, fn, /, *args, **kwargs):
    return guard.run_transaction(port.sessions, "order-1", fn, *args, action="pay", **kwargs).result


def by_effect(port, fn, /, *args, **kwargs):
    return guard.effect("charge").execute(port.sessions, "order-1", fn, *args, **kwargs).result


VERBS = {
    by_execute: {"action", "payload", "scope", "result_type", "wait_timeout", "savepoint"},
    by_run_transaction: {"action", "payload", "scope", "result_type", "wait_timeout", "max_attempts", "timeout"},
    by_effect: {"payload", "scope"},
}
# Options of all verbs, the names that their first parameters have inside, and words of the layers below.
NAMES = sorted(
    set.union(*VERBS.values())
    | {"self", "session", "session_factory", "request_id", "fn", "factory", "kwargs", "args", "context", "effect"}
    | {"verb", "options", "lease", "settings", "key", "token", "retry_later", "taken", "step"}
)


def function_of(name):
    """Return a function with a parameter of this name, which returns what it was given."""
    made = {}
    exec(f"def fn(first, /, given=0, {name}='default'): return [given, {name}]", made)
    return made["fn"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_keyword_that_is_no_option_of_the_verb_reaches_the_function(sqlite, verb, name):
    if name in VERBS[verb]:
        with pytest.raises(UnsupportedFunctionError, match=rf"has a parameter {name!r}"):
            verb(sqlite, function_of(name), 7)
    else:
        assert verb(sqlite, function_of(name), 7, **{name: "theirs"}) == [7, "theirs"]


@on_each_kind
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_keyword_of_another_verb_reaches_the_function_on_every_port(port, statements, verb):
    name = "max_attempts" if verb is by_execute else "savepoint"

    assert verb(port, function_of(name), 7, **{name: True}) == [7, True]
    assert [statement for statement in statements if "SAVEPOINT sa_savepoint" in statement] == []


@before_any_sql
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_parameter_with_the_name_of_an_option_is_refused_by_name(port, statements, verb):
    def at_the_end(first, given=0, *, scope="default"):
        raise AssertionError

    @functools.wraps(at_the_end)
    def wrapped(*args, **kwargs):
        raise AssertionError

    class Shop:
        def method(self, first, given=0, scope="default"):
            raise AssertionError

        def __call__(self, first, given=0, scope="default"):
            raise AssertionError

    for fn in (at_the_end, wrapped, Shop().method, Shop(), functools.partial(at_the_end, given=1)):
        with pytest.raises(
            UnsupportedFunctionError, match=r"has a parameter 'scope', and (execute|run_transaction)\(\) has"
        ):
            verb(port, fn, scope="acme")
        with pytest.raises(UnsupportedFunctionError, match=r"functools.partial\(fn, scope=...\)"):
            verb(port, fn)  # else a keyword would be lost the day that it is given
    with pytest.raises(UnsupportedFunctionError) as caught:
        verb(port, at_the_end)
    assert "by position" not in str(caught.value)
    assert statements == []


@on_each_kind
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_ways_that_the_error_names_reach_the_function(port, verb):
    def fn(first, given=0, scope="default"):
        return [given, scope]

    class Shop:
        def method(self, first, given=0, scope="default"):
            return [given, scope]

    with pytest.raises(UnsupportedFunctionError, match="give it by position, or bind it"):
        verb(port, fn, 7)
    assert verb(port, fn, 7, "theirs", scope="acme") == [7, "theirs"]
    assert verb(port, functools.partial(fn, scope="theirs"), 7, scope="bound") == [7, "theirs"]
    assert verb(port, lambda first, given: fn(first, given, scope="theirs"), 7, scope="lambda") == [7, "theirs"]
    assert verb(port, Shop().method, 7, "theirs", scope="method") == [7, "theirs"]
    with port.sessions() as session:
        for scope in ("acme", "bound", "lambda", "method"):
            assert guard.get(session, "order-1", scope=scope).result == [7, "theirs"]


def test_a_builtin_without_a_signature_is_not_looked_at(sqlite):
    with sqlite.sessions() as session, session.begin():
        with pytest.raises(TypeError):
            guard.execute(session, "order-1", max, 7, action="pay")
        session.rollback()


@pytest.mark.parametrize(
    "verb",
    [
        ExecutionGuard.execute,
        ExecutionGuard.run_transaction,
        AsyncExecutionGuard.execute,
        AsyncExecutionGuard.run_transaction,
        Effect.execute,
        AsyncEffect.execute,
    ],
    ids=lambda verb: verb.__qualname__,
)
def test_a_verb_that_hands_keywords_on_has_no_other_name_that_a_keyword_reaches(verb):
    kinds = {each.kind for each in inspect.signature(verb).parameters.values()}

    assert inspect.Parameter.POSITIONAL_OR_KEYWORD not in kinds
    assert inspect.Parameter.VAR_KEYWORD in kinds


def test_a_savepoint_is_refused_where_each_call_is_a_transaction(sqlite):
    with pytest.raises(ValueError, match="savepoint=True"):
        guard.idempotent(request_id="{x}", action="pay", savepoint=True, session_factory=sqlite.sessions)
    with pytest.raises(ValueError, match="savepoint=True"):
        AsyncExecutionGuard().idempotent(
            request_id="{x}", action="pay", savepoint=True, session_factory=sqlite.sessions
        )
