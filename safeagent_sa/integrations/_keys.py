"""Reads an `Idempotency-Key` from the lines of its header, in one pass."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .._request.ids import MAX_BYTES
from ..errors import InvalidRequestIdError


# RFC 9651, section 3.3: a String, and the Bare Items that a parameter may have. Each alternative begins with another
# character, so that a match takes one pass.
_TEXT = r'(?:[ !#-\[\]-~]|\\["\\])*'
_ITEM = (
    rf'-?\d{{1,15}}(?!\d|\.)|-?\d{{1,12}}\.\d{{1,3}}(?!\d)|"{_TEXT}"|[A-Za-z*][!#$%&\'*+.^_`|~0-9A-Za-z:/-]*'
    rf'|:[A-Za-z0-9+/=]*:|\?[01]|@-?\d{{1,15}}(?!\d|\.)|%"(?:[ !#$&-~]|%[0-9a-f]{{2}})*"'
)
_STRING = re.compile(rf'"({_TEXT})"(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:{_ITEM}))?)*', re.ASCII)
_BARE = re.compile(r"[!#-+\--\[\]-~]+")  # without commas: servers join two headers with one


def parse_key(values: Sequence[str], *, strict: bool = False) -> str | None:
    r"""Read the key from all values of the header; nothing is sent to a database.

    A structured-field String (RFC 9651, section 3.3.3) and the same text without quotes, as most clients send it, are one key.

    Args:
        values: The value of each `Idempotency-Key` line of the request.
        strict: Take quoted Strings only, as the draft has it.

    Returns:
        The key, at most 255 visible ASCII characters and blanks between them; None where there is no header.

    Raises:
        InvalidRequestIdError: The header is there more than once, or is no key.

    Example:
        ```python
        assert parse_key(['"8e03978e"']) == parse_key(["8e03978e"]) == "8e03978e"
        ```
    """
    if not values:
        return None
    if len(values) > 1:
        raise InvalidRequestIdError(f"the request has {len(values)} such headers; send one")
    raw = values[0].strip(" ")
    if raw.startswith('"'):
        found = _STRING.fullmatch(raw)
        if found is None:
            raise InvalidRequestIdError("it begins with a quote, and is no String of RFC 9651, section 3.3.3")
        key = re.sub(r'\\(["\\])', r"\1", found[1])
    elif strict:
        raise InvalidRequestIdError('it has no quotes; send it as a String of RFC 9651, such as "8e03978e"')
    elif _BARE.fullmatch(raw) is None:
        raise InvalidRequestIdError(
            "it is empty, or has characters other than visible ASCII, quotes and commas apart; send a UUID"
        )
    else:
        key = raw
    if not key or key != key.strip(" "):
        raise InvalidRequestIdError("it is empty, or begins or ends with a blank; send a UUID")
    if len(key) > MAX_BYTES:
        raise InvalidRequestIdError(f"it is {len(key)} characters long, more than {MAX_BYTES}; send a UUID")
    return key
