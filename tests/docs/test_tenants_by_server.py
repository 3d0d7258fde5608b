"""docs/tenants-by-server.md: its blocks in order, over two databases."""

import asyncio

import pytest
from sqlalchemy import String, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.app import Port, make_engine
from support.pages import blocks


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(255))
    number: Mapped[int]


@pytest.fixture
def servers(new_database):
    found = {}
    for name in ("east", "west"):
        engine = make_engine(new_database())
        found[name] = Port("postgresql", engine.url.render_as_string(hide_password=False), engine)
        found[name].create_tables()
        Base.metadata.create_all(engine)
    yield found
    for port in found.values():
        port.engine.dispose()


def orders(port):
    with Session(port.engine) as session:
        return [(order.tenant, order.number) for order in session.scalars(select(Order))]


def test_the_blocks_run_as_pasted(servers):
    asynchronous = {
        name: make_url(port.url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        for name, port in servers.items()
    }
    page = {
        "server_urls": {name: port.url for name, port in servers.items()},
        "async_server_urls": asynchronous,
        "Order": Order,
    }
    for block in blocks("tenants-by-server.md"):
        exec(compile(block.text, "docs/tenants-by-server.md", "exec"), page)

    for tenant in ("acme", "globex"):
        first, again = (page["receive"](tenant, "order-1", 1) for _ in range(2))
        assert (first.is_replay, again.is_replay) == (False, True)
    assert orders(servers["east"]) == [("acme", 1)]
    assert sorted(orders(servers["west"])) == [("globex", 1), ("globex", 42)]

    async def receive():
        from safeagent_sa.aio import AsyncExecutionGuard

        try:
            async with page["AsyncSessionLocal"]() as session, session.begin():
                async with AsyncExecutionGuard().claim(
                    session, "order-42", action="place_order", scope="globex"
                ) as execution:
                    return execution.is_replay
        finally:
            for engine in page["async_engines"].values():
                await engine.dispose()

    assert asyncio.run(receive())
    for engine in page["engines"].values():
        engine.dispose()
