"""`safeagent-sa dashboard`: the dashboard for one person on this machine."""

from __future__ import annotations

import threading
import webbrowser
from contextlib import suppress
from typing import Annotated, Any

import typer

from ..models import TABLE_NAME
from ._console import Stop, in_sentences, out
from ._database import opened
from ._options import Schema, TableName, Url


_HOST = "127.0.0.1"
_LIBRARIES = {"starlette", "jinja2", "multipart", "python_multipart", "uvicorn", "anyio"}


@in_sentences
def dashboard(
    *,
    url: Url = None,
    schema: Schema = None,
    table_name: TableName = TABLE_NAME,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.")] = 8090,
    may_resolve_as: Annotated[
        str | None,
        typer.Option(
            "--may-resolve-as", metavar="NAME", help="Allow verdicts, recorded for this name. Default: read only."
        ),
    ] = None,
    reveals: Annotated[bool, typer.Option("--reveal", help="Allow to see results and statements.")] = False,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
) -> None:
    """Show what is in doubt, who holds what and whether the relay is late, in your browser.

    It listens on this machine only, and every user of the machine can reach it while it runs. To share it, mount
    safeagent_sa.dashboard.Dashboard in your app, behind its login.
    """
    try:
        import uvicorn  # noqa: PLC0415 - an extra
        from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415

        from .. import ExecutionGuard  # noqa: PLC0415
        from ..dashboard import Dashboard  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise Stop(
            f'the dashboard needs the library {error.name!r}, which is not installed: pip install "safeagent_sa[cli,dashboard]"'
        ) from None
    with opened(url, schema, table_name) as (engine, model):
        app: Any = Dashboard(
            ExecutionGuard(model=model),
            engine,
            may_look=lambda _request: True,
            may_resolve=lambda _request: may_resolve_as,
            may_reveal=lambda _request: (may_resolve_as or "the command line") if reveals else None,
        )
        # A page of the internet may have a name that leads to this machine (DNS rebinding): only our own names are answered.
        app = TrustedHostMiddleware(app, allowed_hosts=[_HOST, "localhost"])
        server = uvicorn.Server(uvicorn.Config(app, host=_HOST, port=port, log_level="warning", lifespan="off"))
        listening = server.config.bind_socket()
        listening.listen()  # now: a browser that opens the address before the server runs waits, and is not refused
        address = f"http://{_HOST}:{listening.getsockname()[1]}/"
        what = f"verdicts are recorded for {may_resolve_as}" if may_resolve_as else "read only"
        out.print(f"{address} ({what}); stop it with Ctrl-C", soft_wrap=True, markup=False)
        if opens:
            threading.Timer(0.5, _open, [address]).start()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def _open(address: str) -> None:
    with suppress(webbrowser.Error):
        webbrowser.open(address)
