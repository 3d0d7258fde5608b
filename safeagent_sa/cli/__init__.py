"""The command line `safeagent-sa`, in the extra `cli`; the library never imports it.

    revision    _revision ─► _history        one revision in an app's own Alembic history ─► _environment
    adopt       _adopt ─► _revision          the same for a database with a table of SafeAgent's
    migrate     _migrate ─► _standalone      the packaged revisions, for databases without an Alembic history
    list, show  _requests                    stored requests, and what happened to one
    in-doubt    _doubts                      requests that may have happened; `resolve` records what happened
    relay       _relay                       fires stored effects
    doctor      _doctor ─► _servers          checks a database and gives advice
    dashboard   _dashboard                   the same in a browser, for one person on this machine
    purge       _purge                       drops old receipts; `erase` drops what one request has stored
    demo        demo ─► scenes ─► stage ─► worker

`_app` lists the commands; they share `_console`, `_progress`, `_options` and `_urls`. What they look at is in `_inspection/`.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; exit with a message if its libraries are not installed."""
    try:
        from ._app import app  # noqa: PLC0415 - typer and rich are an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        message = (
            f'safeagent-sa needs the library {error.name!r}, which is not installed: pip install "safeagent_sa[cli]"'
        )
        raise SystemExit(message) from None
    app(prog_name="safeagent-sa")
