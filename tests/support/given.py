"""The port of `make engine`: one engine by its URL, on which the tests make their tables and drop them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alembic.migration import MigrationContext
from alembic.operations import Operations

from safeagent_sa import capabilities, schema
from support.app import Base, Port, make_engine


@contextmanager
def given_port(url: str) -> Iterator[Port]:
    """Make the tables on an engine, in SAFEAGENT_ENGINE_PARTITIONS parts; drop them at the end."""
    partitions = int(os.environ.get("SAFEAGENT_ENGINE_PARTITIONS", "0"))
    options = {} if url.startswith("sqlite") else {"pool_size": 40}
    engine = make_engine(url, **options)
    found = capabilities(engine)
    port = Port(engine.dialect.name, url, engine, locks_by_key=found.locking == "key")
    port.create_tables()
    try:
        with engine.begin() as connection:
            op = Operations(MigrationContext.configure(connection))
            if partitions:
                schema.partition(op, by="hash", count=partitions)
            if found.engine == "Citus":
                schema.distribute(op)
        yield port
    finally:
        with engine.begin() as connection:
            op = Operations(MigrationContext.configure(connection))
            if partitions:
                schema.unpartition(op)
            schema.downgrade(op)
            Base.metadata.drop_all(connection)
        engine.dispose()
