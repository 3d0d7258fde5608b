"""What producers do: send one message of a task, in new processes."""

import asyncio
import uuid


def celery(task, order_id, amount):
    import celery_app

    celery_app.app.send_task(task, (order_id, amount))


def dramatiq(task, order_id, amount):
    import dramatiq_app

    dramatiq_app.broker.get_actor(task).send(order_id, amount)


def taskiq(task, order_id, amount):
    import taskiq_app

    async def main():
        await taskiq_app.broker.startup()
        arguments = () if task == "nudge" else (order_id, amount)
        await taskiq_app.broker.find_task(task).kiq(*arguments)
        await taskiq_app.broker.shutdown()

    asyncio.run(main())


def procrastinate(task, order_id, amount):
    from procrastinate_app import app

    with app.open():
        app.configure_task(task).defer(order_id=order_id, amount=amount)


def faststream(task, order_id, amount):
    import faststream_app

    async def main():
        async with faststream_app.broker:
            await faststream_app.broker.declare_queue(faststream_app.queue(task))  # a worker may not be there yet
            body = {"order_id": order_id, "amount": amount}
            await faststream_app.broker.publish(body, task, persist=True, message_id=str(uuid.uuid4()))

    asyncio.run(main())


def _psycopg():
    import psycopg
    from common import DATABASE_URL

    return psycopg.connect(DATABASE_URL.replace("+psycopg", ""), autocommit=True)


def procrastinate_prepare():
    """Make its tables, or make them empty."""
    from procrastinate_app import app

    with _psycopg() as connection:
        if connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone()[0] is not None:
            connection.execute("TRUNCATE procrastinate_jobs, procrastinate_workers CASCADE")
            return
    with app.open():
        app.schema_manager.apply_schema()


def procrastinate_retry_stalled():
    """Bring back what runs, as an operator does who takes its worker for dead."""
    from procrastinate_app import app

    async def main():
        async with app.open_async():
            for job in await app.job_manager.list_jobs_async(status="doing"):
                await app.job_manager.retry_job(job)

    asyncio.run(main())


def procrastinate_end_connections():
    with _psycopg() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'safeagent-queues' AND pid <> pg_backend_pid()"
        )


def procrastinate_count_left():
    _count("todo", "doing")


def procrastinate_count_dead():
    _count("aborted", "failed")


def _count(*statuses):
    with _psycopg() as connection:
        query = "SELECT count(*) FROM procrastinate_jobs WHERE status::text = ANY(%s)"
        print(connection.execute(query, [list(statuses)]).fetchone()[0])


def dramatiq_many(count):
    import dramatiq_app

    actor = dramatiq_app.broker.get_actor("pay")
    for order_id in range(count):
        actor.send(order_id, 100)
