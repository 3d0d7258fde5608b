"""Keys against http-sf, an implementation of structured fields by one of the authors of RFC 9651."""

import http_sf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from safeagent_sa import InvalidRequestIdError
from safeagent_sa.integrations.http import parse_key


PIECES = [
    *'"\\;=?:*@%-.,/ \t',
    "a",
    "B",
    "0",
    "é",
    "\x7f",
    "\x00",
    '"k"',
    ';a="b"',
    ";a=?1",
    ";c=@12",
    ";d=:aGk=:",
    ';e=%"f%c3"',
    ";f=1.5",
]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
quoted = st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x80), max_size=12).map(lambda text: f'"{text}"')


def by_http_sf(value):
    """Return the key that http-sf finds, or None where the value is no String, or no key by our own rules."""
    try:
        found, _ = http_sf.parse(value.encode("utf-8"), tltype="item")
    except Exception:  # noqa: BLE001 - whatever it raises, the value is no item
        return None
    is_key = type(found) is str and 0 < len(found) <= 255 and found == found.strip(" ")
    return found if is_key else None


@settings(max_examples=1500, deadline=None)
@given(st.one_of(texts.map('"{}'.format), quoted, st.tuples(quoted, texts).map("".join)))
@example('"k";a=1.2345')
@example('"k" ;a')
@example('"k"; a')
@example('"k";a=:?:')
def test_a_quoted_key_is_what_http_sf_reads(value):
    assume('%"' not in value)  # a Display String in a parameter: we do not decode what we ignore
    try:
        ours = parse_key([value], strict=True)
    except InvalidRequestIdError:
        ours = None
    assert ours == by_http_sf(value)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_a_bare_key_is_itself_or_refused(value):
    assume(not value.strip(" ").startswith('"'))
    try:
        assert parse_key([value]) == value.strip(" ")
    except InvalidRequestIdError:
        assert not value.strip(" ") or any(each in '"\\,' or not "!" <= each <= "~" for each in value.strip(" "))
