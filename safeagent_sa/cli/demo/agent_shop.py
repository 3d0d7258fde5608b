"""The shop of `safeagent-sa demo agents`: two MCP servers on one database, and the network between them and the client."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import StdioServerParameters
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import REQUEST_TIMEOUT, CallToolResult
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.schema import CreateSchema, DropSchema

from .. import _urls


# Seconds that the client waits for an answer before it calls again.
TIMEOUT = 0.8
# Seconds for everything that must not time out.
PATIENCE = 30.0


@dataclass
class Shop:
    """Two servers on one database, and the network between them and the client."""

    engine: Engine
    folder: Path
    replicas: list[Client] = field(default_factory=list)

    def payments(self, tool: str, order_id: str) -> list[int]:
        """Return the amounts that a tool has paid for an order."""
        query = "SELECT amount FROM agent_payments WHERE tool = :tool AND order_id = :order_id ORDER BY id"
        with self.engine.connect() as connection:
            return list(connection.scalars(text(query), {"tool": tool, "order_id": order_id}))

    def charges(self, tool: str) -> int:
        """Return how often the card provider was called."""
        path = self.folder / "ledger"
        return sum(line.startswith(f"{tool} ") for line in path.read_text().splitlines()) if path.exists() else 0

    @contextmanager
    def slow_network(self) -> Iterator[None]:
        """Keep the answers of the servers back."""
        hold = self.folder / "hold"
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    async def call(self, replica: int, tool: str, timeout: float = PATIENCE, **arguments: Any) -> CallToolResult | None:  # noqa: ASYNC109
        """Call a tool of a replica; None where the answer did not come in time."""
        try:
            return await self.replicas[replica - 1].call_tool(tool, arguments, timeout)
        except MCPError as error:
            if error.code != REQUEST_TIMEOUT:
                raise
            return None


@asynccontextmanager
async def replicas(engine: Engine, url: URL, folder: Path) -> AsyncIterator[Shop]:
    """Start the servers, and stop them at the end of the block."""
    environment = {
        **os.environ,
        "DATABASE_URL": _urls.text_of(url),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "safeagent_sa.cli.demo.agent_server", str(folder)], env=environment
    )
    async with AsyncExitStack() as stack:
        started = [await stack.enter_async_context(Client(command)) for _ in range(2)]
        yield Shop(engine, folder, started)


@contextmanager
def database(server: URL | None) -> Iterator[tuple[URL, Path]]:
    """Make a SQLite file, or a schema of PostgreSQL, that exists for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="safeagent-demo-"))
    schema = f"safeagent_demo_{secrets.token_hex(4)}"
    try:
        if server is None:
            yield URL.create("sqlite", database=str(folder / "shop.db")), folder
            return
        _execute(server, CreateSchema(schema))
        options = f"{server.query.get('options', '')} -csearch_path={schema}".strip()
        yield server.update_query_dict({"options": options}), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if server is not None:
            _execute(server, DropSchema(schema, cascade=True, if_exists=True))


def _execute(url: URL, statement: Any) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(statement)
    finally:
        engine.dispose()
