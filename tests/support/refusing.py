"""Connections that the system refuses, as while no server is there."""

import socket
from contextlib import contextmanager

from sqlalchemy import event


@contextmanager
def refusing(engine, times):
    """Let the next connections of an engine go to a port where nothing listens; yield a list of those that were refused.

    The caller disposes of the engine's pool.
    """
    refused = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens

        def elsewhere(_dialect, _record, _arguments, options):
            if len(refused) < times:
                options.update(host="127.0.0.1", port=closed.getsockname()[1])
                refused.append(1)

        event.listen(engine, "do_connect", elsewhere)
        try:
            yield refused
        finally:
            event.remove(engine, "do_connect", elsewhere)
