"""Claims once under one tracer, in a separate process, since tracers patch for good; prints what the tracer has shown.

Called by `run.py` with the set-up (a cell of the table in docs/logs.md, or "nothing"), the driver, the path and the server's URL.
"""

import asyncio
import importlib
import json
import os
import sys
import uuid
from contextlib import nullcontext


SPANS = []
"""The texts of the spans that the tracer has made."""


def no_transaction():
    return nullcontext()


def opentelemetry(name, distribution, *, is_for_engine=False):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

    class Exporter(SpanExporter):
        def export(self, spans):
            SPANS.extend(str(span.attributes.get("db.statement", span.name)) for span in spans)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    trace.set_tracer_provider(provider)
    instrumentor = getattr(importlib.import_module(f"opentelemetry.instrumentation.{distribution}"), name)()
    # Releases that do not know a SQLAlchemy or a psycopg2 refuse it by their list of dependencies.
    if is_for_engine:
        return no_transaction, lambda engine: instrumentor.instrument(engine=engine, skip_dep_check=True)
    instrumentor.instrument(skip_dep_check=True)
    return no_transaction, None


def sentry():
    import sentry_sdk
    from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

    def keep(transaction, _hint):
        SPANS.extend(str(span.get("description")) for span in transaction["spans"])

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",  # nothing is sent: each transaction is dropped once it was seen
        traces_sample_rate=1.0,
        before_send_transaction=keep,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[SqlalchemyIntegration()],
    )
    return lambda: sentry_sdk.start_transaction(name="one"), None


def datadog(**what):
    os.environ |= {"DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false"}
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    class Filter(TraceFilter):
        def process_trace(self, trace):
            SPANS.extend(str(span.resource) for span in trace)

    tracer.configure(trace_processors=[Filter()])  # which sends nothing, since it returns nothing
    ddtrace.patch(**what)
    return lambda: tracer.trace("one"), None


def elastic():
    import elasticapm
    from elasticapm.transport.base import Transport

    class Kept(Transport):
        def queue(self, event_type, data, flush=False):
            if event_type == "span":
                SPANS.append(str(data.get("context", {}).get("db", {}).get("statement")))

        def start_thread(self, *_, **__):
            pass

        close = flush = start_thread

    sys.modules["kept"] = sys
    sys.Kept = Kept  # the client imports its transport by name
    client = elasticapm.Client(
        service_name="one",
        transport_class="kept.Kept",
        central_config=False,
        cloud_provider="none",
        metrics_interval="0s",
    )
    elasticapm.instrument()

    class Transaction:
        def __enter__(self):
            client.begin_transaction("one")

        def __exit__(self, *_):
            client.end_transaction("one", "ok")

    return Transaction, None


SETUPS = {
    "nothing": lambda: (no_transaction, None),
    "PsycopgInstrumentor().instrument()": lambda: opentelemetry("PsycopgInstrumentor", "psycopg"),
    "Psycopg2Instrumentor().instrument()": lambda: opentelemetry("Psycopg2Instrumentor", "psycopg2"),
    "AsyncPGInstrumentor().instrument()": lambda: opentelemetry("AsyncPGInstrumentor", "asyncpg"),
    "SQLAlchemyInstrumentor().instrument(engine=engine)": lambda: opentelemetry(
        "SQLAlchemyInstrumentor", "sqlalchemy", is_for_engine=True
    ),
    "sentry_sdk.init(integrations=[SqlalchemyIntegration()])": sentry,
    "ddtrace.patch(psycopg=True)": lambda: datadog(psycopg=True),
    "ddtrace.patch(asyncpg=True)": lambda: datadog(asyncpg=True),
    "ddtrace.patch(sqlalchemy=True)": lambda: datadog(sqlalchemy=True),
    "elasticapm.instrument()": elastic,
}


def main(setup, driver, pipeline, url):
    transaction, on_engine = SETUPS[setup]()

    # Behind the tracer, as in an app that follows its manual.
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session

    from safeagent_sa import ExecutionGuard
    from safeagent_sa.aio import AsyncExecutionGuard
    from safeagent_sa.events import Claimed, Completed

    paths, url = [], make_url(url).set(drivername=f"postgresql+{driver}")
    app_statement = text("SELECT 22 AS the_app")

    def listen(event):
        if isinstance(event, (Claimed, Completed)):
            paths.append(event.is_pipelined)

    def sync():
        guard, engine = ExecutionGuard(pipeline=pipeline, listeners=[listen]), create_engine(url)
        if on_engine:
            on_engine(engine)

        def once():
            with Session(engine) as session, session.begin():
                with guard.claim(session, str(uuid.uuid4()), action="trace") as execution:
                    session.execute(app_statement)
                    execution.complete()

        once()  # the first one asks what the database can do
        SPANS.clear(), paths.clear()
        with transaction():
            once()

    async def with_async():
        guard = AsyncExecutionGuard(pipeline=pipeline, listeners=[listen])
        engine = create_async_engine(url)
        if on_engine:
            on_engine(engine.sync_engine)

        async def once():
            async with AsyncSession(engine) as session, session.begin():
                async with guard.claim(session, str(uuid.uuid4()), action="trace") as execution:
                    await session.execute(app_statement)
                    execution.complete()

        await once()
        SPANS.clear(), paths.clear()
        with transaction():
            await once()

    if driver in ("psycopg_async", "asyncpg"):
        asyncio.run(with_async())
    else:
        sync()
    starts = {"app": "SELECT 22", "claim": "WITH inserted", "completion": "UPDATE execution_requests"}
    seen = {name: any(start in span for span in SPANS) for name, start in starts.items()}
    print(json.dumps(seen | {"is_pipelined": paths == [True, True]}), flush=True)
    os._exit(0)  # tracers wait for their servers


if __name__ == "__main__":
    main(*sys.argv[1:])
