"""Follows the pages with a whole app with nothing but what they install: `make frameworks`.

They are the pages of docs/frameworks and those that a new user reads first. Each page gets a new environment and a new database;
safeagent_sa is installed from a wheel of this checkout. With names, only those pages: `make frameworks ARGS=flask`, and `make start` for
the first pages.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import create_engine, text
from support.pages import ROOT
from support.servers import start


FOLLOW = Path(__file__).with_name("follow.py")
PATHS = [path for path in sorted((ROOT / "docs" / "frameworks").glob("*.md")) if path.stem != "README"]
FIRST = [*sorted((ROOT / "docs" / "start").glob("*.md")), ROOT / "docs" / "fault-explorer.md"]
PAGES = {path.stem: path.relative_to(ROOT / "docs").as_posix() for path in (*PATHS, *FIRST)}


def main(names: list[str]) -> int:
    pages = [path.stem for path in FIRST] if names == ["--first"] else names or list(PAGES)
    server = start()
    failed = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheels = Path(folder, "wheels")
            build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT]
            subprocess.run([sys.executable, *build], check=True)
            for page in pages:
                print(f"\ndocs/{PAGES[page]}", flush=True)
                began = time.monotonic()
                url = _database(server.url, page.replace("-", "_"))
                arguments = [PAGES[page], Path(folder, page), url, "--install", wheels]
                if subprocess.run([sys.executable, FOLLOW, *arguments], check=False).returncode != 0:
                    failed.append(page)
                print(f"{time.monotonic() - began:.0f} seconds", flush=True)
    finally:
        server.stop()
    print(f"\n{len(pages) - len(failed)} of {len(pages)} pages work as written", *failed)
    return 1 if failed else 0


def _database(server: object, page: str) -> str:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS safeagent_page_{page}"))
        connection.execute(text(f"CREATE DATABASE safeagent_page_{page}"))
    admin.dispose()
    return admin.url.set(database=f"safeagent_page_{page}").render_as_string(hide_password=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
