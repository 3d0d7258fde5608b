"""Sees whether claims go with BEGIN."""

from contextlib import contextmanager
from unittest import mock

from safeagent_sa._dialects.postgresql.pipeline import Pipeline


@contextmanager
def pipelined_claims(claims=None):
    """Give a list that gets an entry for each claim that goes with BEGIN: a new one, or the one that is given."""
    claims, begin = [] if claims is None else claims, Pipeline.begin

    def noted(*arguments):
        claims.append(None)
        return begin(*arguments)

    with mock.patch.object(Pipeline, "begin", noted):
        yield claims
