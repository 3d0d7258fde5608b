"""The queues under test: how each is sent to, how its workers start, and how it is made to deliver again."""

import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pika
import redis as redis_client
from support.waiting import until


GRACE = 15  # seconds

APPS = Path(__file__).parent / "apps"


class Worker:
    """A worker and all its processes, in a process group."""

    def __init__(self, command, environment, log, cwd=APPS, python=sys.executable):
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self):
        """Kill the worker and its parent at once: no handler runs."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End it as a deployment does: with a signal, and after a grace period by force, which Celery may need."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            self.end()

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


class System:
    """A queue with its app. The subclasses say how it is sent to, and how many messages it still has."""

    name: str
    command: tuple[str, ...]
    forgets_acknowledgements = True
    """Whether a message is delivered again if its broker was restarted before its acknowledgement."""

    def __init__(self, broker, database_url, hub, folder):
        self.broker, self.database_url, self.hub, self.folder = broker, database_url, hub, folder
        self.workers = []
        self.prepare()

    def prepare(self):
        """Make the queue empty."""

    def environment(self, *, is_guarded=True, gates="", **more):
        own = {
            "DATABASE_URL": self.database_url,
            "BROKER_URL": getattr(self.broker, "url", ""),
            "HUB": self.hub.path,
            "IS_GUARDED": "1" if is_guarded else "0",
            "GATES": gates,
            "PGAPPNAME": "safeagent-queues",
            "PYTHONPATH": str(APPS),
            "dramatiq_restart_delay": "100",
        }
        return dict(os.environ) | own | more

    def work(self, **options):
        command = [word.format(number=len(self.workers)) for word in self.command]
        worker = Worker(command, self.environment(**options), self.folder / f"{self.name}.log")
        self.workers.append(worker)
        return worker

    def send(self, task, order_id, amount=100):
        """Send from a new process, as the app's producers do."""
        return self.run(f"import sending; sending.{self.name}({task!r}, {order_id}, {amount})")

    def run(self, source):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", source],
            cwd=APPS,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def finish(self):
        """End every worker in order: it acknowledges what it has done, and gives the rest back."""
        for worker in self.workers:
            worker.stop()

    def redeliver(self, running=None):
        """Make the broker deliver again what a worker holds."""
        self.broker.drop_connections()

    def resume(self, running):
        """End what `redeliver` began."""

    def restart(self, acknowledging):
        """Take the broker's power, and start it again, in front of an acknowledgement."""
        self.broker.restart()
        acknowledging.release()

    def recover(self, **options):
        """Do what an operator must do after that."""

    def close(self):
        for worker in self.workers:
            worker.end()

    def wait(self):
        """Wait until nothing is left that a worker has not acknowledged."""
        log = self.folder / f"{self.name}.log"
        until(f"the acknowledgement of every message, by workers that log to {log}", lambda: not self.left())

    def logs(self):
        return (self.folder / f"{self.name}.log").read_text()


def amqp(broker):
    return closing(pika.BlockingConnection(pika.URLParameters(broker.url)))


class OnRabbitMQ(System):
    queues: tuple[str, ...]
    dead: str

    def prepare(self):
        with amqp(self.broker) as connection:
            for name in (*self.queues, self.dead):
                connection.channel().queue_delete(name)

    def left(self):
        """Count the messages that are waiting; a worker that ended holds none."""
        return sum(self._count(name) for name in self.queues)

    def dead_letters(self):
        return self._count(self.dead)

    def _count(self, name):
        with amqp(self.broker) as connection:
            try:
                return connection.channel().queue_declare(name, passive=True).method.message_count
            except pika.exceptions.ChannelClosedByBroker:
                return 0


class OnRedis(System):
    def prepare(self):
        self.client = redis_client.Redis.from_url(self.broker.url, decode_responses=True)
        self.client.flushall()


class CeleryRedis(OnRedis):
    name = "celery"
    command = (
        "-m",
        "celery",
        "-A",
        "celery_app",
        "worker",
        "-c",
        "2",  # a message that comes back to the process whose one child is busy would wait in it
        "--without-gossip",
        "--without-mingle",
        "-n",
        "{number}@localhost",
    )

    def redeliver(self, running=None):
        """Nothing to do: the visibility time-out of the app is shorter than its task."""

    def recover(self, **options):
        """Start the worker again, which does not consume after a restart of Redis: celery/celery#10205."""
        self.workers[-1].kill()
        self.work(**options)

    def left(self):
        return self.client.llen("payments") + self.client.hlen("unacked")

    def dead_letters(self):
        states = [json.loads(self.client.get(key)) for key in self.client.keys("celery-task-meta-*")]
        return sum(state["status"] == "FAILURE" for state in states)


class CeleryRabbitMQ(OnRabbitMQ):
    name, queues, dead = "celery", ("payments",), "dead"
    command = CeleryRedis.command


class DramatiqRabbitMQ(OnRabbitMQ):
    name, queues, dead = "dramatiq", ("payments", "payments.DQ"), "payments.XQ"
    command = ("-m", "dramatiq", "dramatiq_app", "--processes", "1", "--threads", "2")


class DramatiqRedis(OnRedis):
    name = "dramatiq"
    command = DramatiqRabbitMQ.command

    def restart(self, acknowledging):
        """Let the broker start again with a snapshot of the time before the acknowledgement.

        The power alone is not enough: an acknowledgement is a command that the client sends again.
        """
        self.client.save()
        acknowledging.release()
        until("the acknowledgement of the worker", lambda: not self.left())
        self.broker.restart()

    def recover(self, **options):
        """Start the worker again: what a worker holds comes back when it is gone."""
        self.workers[-1].kill()
        self.work(**options)

    def left(self):
        names = [f"dramatiq:{queue}" for queue in ("payments", "payments.DQ")]
        held = [self.client.scard(key) for key in self.client.keys("dramatiq:__acks__*")]
        return sum(map(self.client.llen, names)) + sum(held)

    def dead_letters(self):
        return self.client.zcard("dramatiq:payments.XQ")

    def redeliver(self, running=None):
        """Let the worker send no sign of life for longer than the broker's time-out."""
        os.killpg(os.getpgid(running.pid), signal.SIGSTOP)

    def resume(self, running):
        os.killpg(os.getpgid(running.pid), signal.SIGCONT)


class TaskiqRedis(OnRedis):
    name = "taskiq"
    command = ("-m", "taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--ack-type", "when_saved")

    def redeliver(self, running=None):
        """Wait for the time-out of the app, and send another message: taskiq-redis looks only after one."""
        pending = partial(self.client.xpending_range, "payments", "taskiq", "-", "+", 1, idle=1500)
        until("a message that no worker has acknowledged for 1.5 s", pending)
        self.send("nudge", 0)

    def recover(self, **options):
        """Send another message to the worker, which has died and was started again by its parent."""
        self.redeliver()

    def finish(self):
        """Wait until everything is acknowledged: a worker of taskiq-redis goes on listening after SIGTERM."""
        self.wait()

    def left(self):
        groups = self.client.xinfo_groups("payments") if self.client.exists("payments") else []
        return sum(group["pending"] + (group["lag"] or 0) for group in groups)

    def dead_letters(self):
        """Count the results that are errors: taskiq has no dead letters."""
        raw = redis_client.Redis.from_url(self.broker.url)
        results = [
            pickle.loads(raw.get(key)) for key in raw.scan_iter() if raw.type(key) == b"string" and len(key) == 32
        ]
        return sum(result["is_err"] for result in results)


class Procrastinate(System):
    name = "procrastinate"
    # They are statements that the worker sends again, to the database of the rows: what a crash or a backup keeps of one, it keeps
    # of the other.
    forgets_acknowledgements = False
    command = ("-m", "procrastinate", "--app", "procrastinate_app.app", "worker", "--concurrency", "1")

    def prepare(self):
        self._manage("prepare")

    def redeliver(self, running=None):
        self._manage("retry_stalled")

    def left(self):
        return int(self._manage("count_left"))

    def dead_letters(self):
        return int(self._manage("count_dead"))

    def restart(self, acknowledging):
        """End every connection of the worker, as a restart of PostgreSQL does."""
        self._manage("end_connections")
        acknowledging.release()

    def _manage(self, name):
        return self.run(f"import sending; sending.procrastinate_{name}()")


class FastStreamRabbitMQ(OnRabbitMQ):
    name, queues, dead = "faststream", ("pay", "pay_keyed"), "dead"
    command = ("-m", "faststream", "run", "faststream_app:app")
