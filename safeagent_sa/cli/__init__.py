"""The command line `safeagent-sa`; the library never imports it, and it needs the extra `cli`.

    revision    _revision ─► _history       one revision for an app's own Alembic history
    adopt       _adopt ─► _revision         the same for a database that has a table of SafeAgent's
    migrate     _migrate ─► _standalone     the packaged revisions, for those who have none
    list, show  _requests ─► _reads         a look at stored requests, in a table of any size ─► _stretches
    in-doubt    _doubts                     what may have happened, and `resolve`: what has become of it
    relay       _relay                      fires stored effects
    doctor      _doctor ─► _doctor_requests what is wrong with a database, and what to do
    purge       _purge                      drop old receipts; `erase`: what one request has stored
    demo        _demo ─► _demo_scenes ─► _demo_stage ─► _demo_worker

`_app` lists the commands; `_console`, `_options` and `_urls` are what they share.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; exit with a sentence where its libraries are not installed."""
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
