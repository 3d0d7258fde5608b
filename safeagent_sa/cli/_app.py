"""The list of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import _adopt, _dashboard, _doctor, _doubts, _migrate, _purge, _relay, _requests, _revision, demo
from ._console import forgive_unprintable


app = typer.Typer(
    help="Run a business transaction once per request_id: migrations, stored requests, effects, checks and a demo.",
    epilog="Exit codes: 0 done, 1 not done or not found (see stderr), 2 wrong arguments.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the help texts contain square brackets
    pretty_exceptions_enable=False,  # they print local variables, and a URL with its password is one of them
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"safeagent_sa {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    forgive_unprintable()


app.command("revision")(_revision.revision)
app.command("adopt")(_adopt.adopt)
app.command("migrate")(_migrate.migrate)
app.command("list")(_requests.list_requests)
app.command("show")(_requests.show_request)
app.command("in-doubt")(_doubts.in_doubt)
app.command("resolve")(_doubts.resolve)
app.command("relay")(_relay.relay)
app.command("doctor")(_doctor.doctor)
app.command("dashboard")(_dashboard.dashboard)
app.command("purge")(_purge.purge)
app.command("erase")(_purge.erase)
app.command("demo")(demo.demo)
