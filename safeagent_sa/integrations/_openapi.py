"""What an OpenAPI document says of a guarded operation: the header, and the problems that answer in place of the endpoint."""

from __future__ import annotations

from typing import Any

from .http import HttpPolicy


# Bare, or quoted; no blank at either end.
_PATTERN = r'^([!#-+\--\[\]-~]{1,255}|"[!#-\[\]-~]([ !#-\[\]-~]{0,253}[!#-\[\]-~])?")$'

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
# The framework's own answers with the same status, which these would replace: a body that cannot be read, or validated.
_OTHER: dict[str, Any] = {"application/json": {"schema": {"type": "object", "properties": {"detail": {}}}}}

_DESCRIPTIONS = {
    "400": "The key is missing or malformed, or the content cannot be read",
    "404": "Nothing is stored under this key",
    "409": "A request with this key is outstanding, or its outcome is not known",
    "410": "The answer to this key is no longer kept",
    "413": "The content is larger than what is compared",
    "422": "The key was used with other content, or the content is not valid",
}


def header(policy: HttpPolicy) -> dict[str, Any]:
    """Return the parameter of the key."""
    return {
        "name": policy.header,
        "in": "header",
        "required": policy.required,
        "description": "Names the request: the same on every retry, such as a UUID. A retry gets the original response.",
        "schema": {"type": "string", "pattern": _PATTERN},
    }


def problems(*statuses: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses with these statuses."""
    return {int(status): _problem(status) for status in statuses}


def _problem(status: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _PROBLEM}}
    found: dict[str, Any] = {"description": _DESCRIPTIONS[status], "content": content}
    if status in ("400", "422"):
        found["content"] = content | _OTHER
    if status == "409":
        found["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return found


def with_problems(policy: HttpPolicy, given: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Return the responses that a route declares, with the problems among them."""
    found = dict(given)
    for status, ours in problems("400", "409", "413", "422", str(policy.expired_status)).items():
        key = next((each for each in given if str(each) == str(status)), status)
        theirs = given.get(key, {})
        found[key] = ours | theirs | {"content": ours["content"] | theirs.get("content", {})}
    return found


def with_header(policy: HttpPolicy, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a route adds to its operation, with the header in it."""
    parameters = given.get("parameters", [])
    ours = header(policy)
    return given if ours in parameters else {**given, "parameters": [*parameters, ours]}
