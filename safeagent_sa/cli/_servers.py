"""Looks at every server of a URL with several hosts: another one may have become the primary, or may still be one."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from .._inspection.finding import Finding
from .._inspection.replication import PAGE, Sight, look


def look_around(engine: Engine) -> Iterator[Finding]:
    """Yield what is found about the servers of a URL; nothing where it names one. Their timelines are remembered."""
    addresses = _addresses(engine)
    if len(addresses) < 2:  # noqa: PLR2004 - one is looked at anyway
        return
    seen: dict[str, Sight] = {}
    for address, options in addresses.items():
        single = create_engine(engine.url, connect_args=options, poolclass=NullPool)
        try:
            with single.connect() as connection:
                seen[address] = look(connection)
        except DBAPIError:
            pass  # named below
        finally:
            single.dispose()
    silent = [address for address in addresses if address not in seen]
    found = f"{len(seen)} of {len(addresses)} answer" + (f"; not {', '.join(silent)}" if silent else "")
    advice = "a server that is gone cannot be promoted, and may come back as an old primary" if silent else ""
    yield Finding("servers", "warning" if silent else "ok", found, advice)
    primaries = [address for address, sight in seen.items() if sight.is_primary]
    if len(primaries) > 1:
        found = f"{len(primaries)} servers may write: " + ", ".join(
            f"{address} (timeline {seen[address].timeline})" for address in primaries
        )
        advice = (
            f"each executes the same requests: stop all but the newest, and let the others follow by pg_rewind; {PAGE}"
        )
        yield Finding("split-brain", "problem", found, advice)


def _addresses(engine: Engine) -> dict[str, dict[str, str]]:
    """Return the options that lead to each server, in place of those that choose one."""
    _, options = engine.dialect.create_connect_args(engine.url)
    hosts, ports = str(options.get("host", "")).split(","), str(options.get("port", "")).split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    return {
        f"{host}:{port}" if port else host: {"host": host, "port": port or "5432", "target_session_attrs": "any"}
        for host, port in zip(hosts, ports, strict=True)
    }
