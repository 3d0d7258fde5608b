"""Brokers of the tests: real servers on loopback, with folders and ports of the tests, ended by their process ids."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
from support.waiting import until


def program(name, package, *places):
    """Return the path of a server's program, or fail with the remedy."""
    path = os.pathsep.join([*places, os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.fail(f"{package} is not here: `apt install --no-install-recommends {package}`", pytrace=False)
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(is_ready, process, log):
    """Wait until a server answers; there is no event to wait for in a server that is only starting."""

    def look():
        assert process.poll() is None, Path(log).read_text()
        return is_ready()

    until(f"the server that logs to {log}", look)


def accepts(port, hello=b"", answer=b""):
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as line:
            line.sendall(hello)
            return not answer or line.recv(len(answer)) == answer
    except OSError:
        return False


class Broker:
    """One server: started, killed, and started again on the same port and folder."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        self.start()

    def start(self):
        log = self.folder / "log"
        with log.open("a") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                start_new_session=True,
            )
        wait_for(self.is_ready, self.process, log)

    def environment(self):
        return dict(os.environ)

    def kill(self):
        """As a machine that loses power: nothing is flushed, no client is asked."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self):
        self.kill()
        self.start()

    def stop(self):
        if self.process.poll() is None:
            self.kill()


class Redis(Broker):
    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    durability: ClassVar = {"appendonly": "yes", "appendfsync": "always"}

    def command(self):
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": ""}
        given = [str(word) for name, value in (options | self.durability).items() for word in (f"--{name}", value)]
        return [program("redis-server", "redis-server"), *given]

    def is_ready(self):
        return accepts(self.port, b"PING\r\n", b"+PONG")


class SnapshotRedis(Redis):
    """As Redis is configured by default: it starts again with its last snapshot, which the test takes."""

    durability: ClassVar = {"appendonly": "no"}


class Nats(Broker):
    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def command(self):
        store = ["--jetstream", "--store_dir", str(self.folder)]
        return [program("nats-server", "nats-server"), "--addr", "127.0.0.1", "--port", str(self.port), *store]

    def is_ready(self):
        return accepts(self.port, b"", b"INFO")


class RabbitMQ(Broker):
    def __init__(self, folder):
        self.epmd_port, self.dist_port = free_port(), free_port()
        # Erlang starts one for good where it finds none.
        command = [program("epmd", "rabbitmq-server"), "-port", str(self.epmd_port), "-address", "127.0.0.1"]
        self.epmd = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        super().__init__(folder)

    @property
    def url(self):
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def environment(self):
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\n")
        (self.folder / "plugins").write_text("[].\n")
        own = {
            "HOME": self.folder,
            "RABBITMQ_NODENAME": "safeagent@localhost",
            "RABBITMQ_DIST_PORT": self.dist_port,
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_LOG_BASE": self.folder / "logs",
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self.epmd_port,
        }
        return dict(os.environ) | {name: str(value) for name, value in own.items()}

    def command(self):
        # Not the wrapper of Debian, which changes the account.
        return [program("rabbitmq-server", "rabbitmq-server", "/usr/lib/rabbitmq/bin")]

    def is_ready(self):
        return accepts(self.port, b"AMQP\x00\x00\x09\x01", b"\x01")

    def control(self, *arguments):
        command = [program("rabbitmqctl", "rabbitmq-server", "/usr/lib/rabbitmq/bin"), "-n", "safeagent@localhost"]
        done = subprocess.run(
            [*command, "--quiet", *arguments], check=True, env=self.environment(), capture_output=True, text=True
        )
        return done.stdout

    def drop_connections(self):
        """Close the connections that hold a message, as a network that breaks: it is delivered again at once.

        The others stay, or one of them might get the message before it is closed, too, and deliver it a third time.
        """
        channels = self.control("list_channels", "--no-table-headers", "connection", "messages_unacknowledged")
        holding = [connection for connection, held in map(str.split, channels.splitlines()) if held != "0"]
        assert holding, f"no connection holds a message: {channels}"
        for connection in holding:
            self.control("close_connection", connection, "the test breaks the network")

    def stop(self):
        super().stop()
        self.epmd.kill()
        self.epmd.wait()
