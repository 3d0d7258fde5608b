"""What MCP tools return: as the plain tool, by the names of its output schema, which the client checks."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

import fastmcp
import pytest
from mcp.client import Client
from mcp.server.mcpserver import Image, MCPServer
from mcp_types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy.orm import Session

from safeagent_sa import ExecutionGuard, UnsupportedResultTypeError
from safeagent_sa.integrations import fastmcp as for_fastmcp
from safeagent_sa.integrations import mcp as for_mcp


class Color(Enum):
    RED = "red"


class Aliased(BaseModel):
    receipt_id: str = Field(alias="receiptId")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    receipt_id: str
    paid_in: Color = Color.RED


class Written(BaseModel):
    receipt_id: str = Field(serialization_alias="receiptId")


@dataclass
class Stamped:
    color: Color
    at: dt.datetime


HELLO, DOT = TextContent(text="hello"), ImageContent(data="aGk=", mime_type="image/png")
RESULTS = {
    "alias": (Aliased, Aliased(receiptId="r")),
    "camel": (Camel, Camel(receipt_id="r")),
    "aliases_in_a_list": (list[Aliased], [Aliased(receiptId="r")]),
    "aliases_in_a_dict": (dict[str, Camel], {"x": Camel(receipt_id="r")}),
    "alias_or_none": (Camel | None, Camel(receipt_id="r")),
    "dataclass": (Stamped, Stamped(Color.RED, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))),
    "enum": (Color, Color.RED),
    "enums": (dict[str, Color], {"a": Color.RED}),
    "decimal": (Decimal, Decimal("1.50")),
    "nothing": (None, None),
    "block": (TextContent, HELLO),
    "blocks": (list[TextContent | ImageContent], [HELLO, DOT]),
    "text_and_block": (list[str | ImageContent], ["plain", DOT]),
}


def returning(result_type, result, *parameters):
    def tool(key: str):
        return result

    def guarded(session: Session, key: str):
        return result

    found = guarded if parameters else tool
    found.__annotations__["return"] = result_type
    return found


async def called(framework, postgresql, names):
    """Call each tool unguarded and twice guarded; the clients check the structured content by the schema of the tool."""
    server = MCPServer("s") if framework == "mcp" else fastmcp.FastMCP("s")
    module = for_mcp if framework == "mcp" else for_fastmcp
    for name in names:
        guarded = module.guarded_tool(
            ExecutionGuard(), postgresql.sessions, request_id="{key}", action=name, scope=name
        )
        server.tool(name=f"plain_{name}")(returning(*RESULTS[name]))
        server.tool(name=f"guarded_{name}")(guarded(returning(*RESULTS[name], Session)))
    found = {}
    async with (Client if framework == "mcp" else fastmcp.Client)(server) as client:
        for name in names:
            tools = [f"plain_{name}", f"guarded_{name}", f"guarded_{name}"]
            found[name] = [await client.call_tool(tool, {"key": "k"}) for tool in tools]
    return found


@pytest.mark.parametrize("framework", ["mcp", "fastmcp"])
def test_the_structured_content_is_that_of_the_plain_tool(framework, postgresql):
    for name, (plain, first, again) in asyncio.run(called(framework, postgresql, RESULTS)).items():
        assert not any(each.is_error for each in (plain, first, again)), name
        assert plain.structured_content == first.structured_content == again.structured_content, name
        assert [first.meta["safeagent-sa/status"], again.meta["safeagent-sa/status"]] == ["executed", "replayed"]


@pytest.mark.parametrize("framework", ["mcp", "fastmcp"])
def test_content_blocks_stay_content_blocks(framework, postgresql):
    names = ["block", "blocks", "text_and_block"]
    for name, (plain, first, again) in asyncio.run(called(framework, postgresql, names)).items():
        assert plain.content == first.content == again.content[:-1], name
        assert again.content[-1].text.startswith("Already done at 2")


def test_an_alias_that_only_the_output_has_is_not_in_the_schema_and_not_in_the_answer(postgresql):
    """The plain tool of mcp answers by the alias here, which its own schema lacks, and its client refuses that."""
    server = MCPServer("s")
    decorate = for_mcp.guarded_tool(
        ExecutionGuard(), postgresql.sessions, request_id="{key}", action="written", scope="s"
    )
    server.tool(name="written")(decorate(returning(Written, Written(receipt_id="r"), Session)))

    async def scenario():
        async with Client(server) as client:
            return [await client.call_tool("written", {"key": "k"}) for _ in range(2)]

    assert [each.structured_content for each in asyncio.run(scenario())] == [{"receipt_id": "r"}] * 2


@pytest.mark.parametrize("module", [for_mcp, for_fastmcp])
@pytest.mark.parametrize(
    ("result_type", "advice"),
    [
        (CallToolResult, "which the guard's decorator makes.*Return the data"),
        (fastmcp.tools.ToolResult, "which the guard's decorator makes.*Return the data"),
        (Image, r"Image\(\.\.\.\)\.to_image_content\(\)"),
        (list[fastmcp.utilities.types.File], r"File\(\.\.\.\)\.to_resource_content\(\)"),
    ],
)
def test_a_result_that_cannot_be_stored_is_refused_at_the_decoration(module, result_type, advice, postgresql):
    decorate = module.guarded_tool(ExecutionGuard(), postgresql.sessions, request_id="{key}", action="a", scope="s")

    with pytest.raises(UnsupportedResultTypeError, match=advice):
        decorate(returning(result_type, None, Session))
