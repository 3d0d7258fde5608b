"""A proxy that knows PostgreSQL's messages and loses the connection at any one of them."""

import socket
import struct
from contextlib import suppress

from sqlalchemy import make_url

from support.proxy import Proxy


class MessageProxy(Proxy):
    """Forwards messages, counts them once it is armed, and cuts the connection at the n-th message of one direction.

    "client": the n-th message of the client does not reach the server. "server": the n-th message of the server does not
    reach the client. A message begins with a type byte and a length (manual, section 55.7); the client's first message has no
    type.
    """

    def __init__(self, url):
        self.cut_at = None
        self.counts = {"client": 0, "server": 0}
        self.round_trips = 0
        self.statements = 0
        super().__init__(url)
        # no negotiation, so that the message without a type is the first one
        plain = {"ssl": "disable"} if "asyncpg" in self.url else {"sslmode": "disable", "gssencmode": "disable"}
        self.url = make_url(self.url).update_query_dict(plain).render_as_string(hide_password=False)

    def arm(self, direction, number):
        self.counts = {"client": 0, "server": 0}
        self.cut_at = (direction, number)

    def disarm(self):
        """Return whether the cut happened."""
        happened, self.cut_at = self.cut_at is None, None
        return happened

    def _pump(self, source, target, passes, state):
        direction = "client" if passes == self._from_client else "server"
        buffer, has_type = b"", direction == "server"
        try:
            while data := source.recv(65536):
                buffer += data
                while (size := _size(buffer, has_type)) is not None and len(buffer) >= size:
                    message, buffer = buffer[:size], buffer[size:]
                    has_type = True
                    if self._is_cut(direction, message):
                        return
                    target.sendall(self._passed_on(direction, message))
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _passed_on(self, _direction, message):
        return message

    def _is_cut(self, direction, message):
        with self._lock:
            self.round_trips += direction == "server" and message[:1] == b"Z"  # ReadyForQuery
            self.statements += direction == "client" and message[:1] in (b"Q", b"E")  # Query, Execute
            number = self.counts[direction]
            self.counts[direction] += 1
            if self.cut_at != (direction, number):
                return False
            self.cut_at = None
            return True


class PoolerProxy(MessageProxy):
    """Gives its clients process numbers of its making, as poolers do: the server's processes serve many of them."""

    def _passed_on(self, direction, message):
        is_key = (
            direction == "server" and message[:1] == b"K"
        )  # BackendKeyData: the number of the process, and a secret
        return message[:5] + struct.pack("!I", 1) + message[9:] if is_key else message


def _size(buffer, has_type):
    start = 1 if has_type else 0
    if len(buffer) < start + 4:
        return None
    return start + struct.unpack_from("!I", buffer, start)[0]
