"""The results of one tool of MCP as its output schema describes them: structured content by its names, and content blocks.

A receipt is stored by the names that give it back. These may be the aliases of a model where the schema has the names of the fields,
and the other way round, and a client refuses content that does not fit the schema, although the call was executed.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import TypeAdapter

from .._request.results import MisfitError, TypedResult, result_type_of
from ..errors import UnsupportedResultTypeError
from .agents import AnswerStatus, ToolAnswer


_BLOCKS = typing.get_args(ContentBlock)

# Helpers of the SDK and of FastMCP, by their names: they are made into content when they are sent, and cannot be stored.
_HELPERS = {"Image": "to_image_content", "Audio": "to_audio_content", "File": "to_resource_content"}


class Results:
    """How the results of one tool are shown."""

    def __init__(
        self, result_type: Any, *, schema: dict[str, Any] | None, is_wrapped: bool, by_alias: bool | None
    ) -> None:
        """Look at the result type; nothing of this is repeated at a call.

        Args:
            result_type: What the tool returns.
            schema: The tool's output schema, None where it has no structured content.
            is_wrapped: Whether the schema has the result in a field of that name.
            by_alias: As `result_type` is to be written, as for pydantic; None for what each model says.
        """
        try:
            found: Any = result_type_of(result_type)
        except UnsupportedResultTypeError:  # raised by the first call, unless the guard has an encoder for it
            found = None
        self._type = found if isinstance(found, TypedResult) else None
        self._by_alias = by_alias
        self._is_structured = schema is not None
        self._is_wrapped = is_wrapped
        self._has_blocks = schema is None and any(issubclass(each, _BLOCKS) for each in _classes_in(result_type))

    def named(self, answer: ToolAnswer) -> ToolAnswer:
        """Return an answer whose result has the names of the tool's schema."""
        if self._type is None or not answer.has_result or answer.status is AnswerStatus.REFUSED:
            return answer
        try:
            value = self._type.decode(answer.result_text)
        except MisfitError:  # stored by an encoder of the guard, or by an earlier version of the tool
            return answer
        return replace(answer, result=self._type.plain(value, by_alias=self._by_alias))

    def structured(self, answer: ToolAnswer) -> Any:
        """Return the structured content of an answer that is named, or None."""
        if not self._is_structured or answer.is_error:
            return None
        return {"result": answer.result} if self._is_wrapped else answer.result

    def blocks(self, answer: ToolAnswer, texts: list[str]) -> list[ContentBlock]:
        """Return the blocks of an answer: those that the tool has returned, or the text of its result, and what became of the call."""
        blocks: list[ContentBlock] = [TextContent(text=text) for text in texts]
        if not self._has_blocks or answer.is_error:
            return blocks
        results = answer.result if isinstance(answer.result, list) else [answer.result]
        return [*map(_block_of, results), *blocks[1:]]


def takes_aliases(result_type: Any, schema: dict[str, Any] | None) -> bool:
    """Return whether a schema has the aliases of a type, and not the names of its fields."""
    wanted = set(_names_in(schema))

    def fitting(*, by_alias: bool) -> int:
        made = TypeAdapter(result_type).json_schema(mode="serialization", by_alias=by_alias)
        return len(wanted.intersection(_names_in(made)))

    try:
        return fitting(by_alias=True) >= fitting(by_alias=False)
    except Exception:  # noqa: BLE001 - a type that pydantic does not know has no aliases
        return True


def _block_of(plain: Any) -> ContentBlock:
    if isinstance(plain, dict) and "type" in plain:
        block: ContentBlock = TypeAdapter(ContentBlock).validate_python(plain)
        return block
    return TextContent(text=plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def _names_in(schema: Any) -> Iterator[str]:
    """Yield the names of all properties of a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for each in schema.values():
            yield from _names_in(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _names_in(each)


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for each in typing.get_args(annotation):
        yield from _classes_in(each)


def refuse_results(result_type: Any) -> None:
    """Raise UnsupportedResultTypeError for a result of the protocol, which the decorator makes, and for what cannot be stored."""
    for each in _classes_in(result_type):
        verb = _HELPERS.get(each.__name__, "")
        if verb and hasattr(each, verb):
            raise UnsupportedResultTypeError(
                f"results of type {each.__name__} cannot be stored: return the content block that it makes, "
                f"{each.__name__}(...).{verb}(), and annotate the tool with its type."
            )
        if issubclass(each, CallToolResult) or each.__name__ == "ToolResult":
            raise UnsupportedResultTypeError(
                f"the tool returns a {each.__name__}, which the guard's decorator makes: it also says what became of the call. Return "
                "the data, and the framework's schema is made of its type; or return content blocks, such as list[TextContent]."
            )


UNKNOWN = Results(Any, schema=None, is_wrapped=False, by_alias=None)
"""For tools without an annotation."""
