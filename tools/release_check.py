"""Checks what a release would upload, as a user gets it: `make release-check`, and `make release-extras` for every extra alone.

It builds the sdist, and the wheel from it, into build/release, and then uses nothing else: each is installed in a new environment,
in a folder where the repository is out of reach. The first failure ends it. `--final` also refuses placeholders.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "build" / "release"
PLACEHOLDER = "OWNER"

MAX_WHEEL = 640 * 1024
"""Bytes: a third more than the wheel has; a picture or a copy of a library in it would be more."""

MODULES = {
    "postgresql": ["psycopg"],
    "asyncio": ["safeagent_sa.aio", "greenlet"],
    "pydantic": ["pydantic"],
    "fastapi": ["safeagent_sa.integrations.fastapi"],
    "flask": ["safeagent_sa.integrations.flask"],
    "httpx": ["safeagent_sa.integrations.httpx"],
    "requests": ["safeagent_sa.integrations.requests"],
    "otel": ["safeagent_sa.integrations.opentelemetry"],
    "testing": ["safeagent_sa.testing", "pytest_safeagent_sa"],
    "cli": ["safeagent_sa.cli._app"],
    "celery": ["safeagent_sa.integrations.celery"],
    "dramatiq": ["safeagent_sa.integrations.dramatiq"],
    "taskiq": ["safeagent_sa.integrations.taskiq"],
    "procrastinate": ["safeagent_sa.integrations.procrastinate"],
    "faststream": ["safeagent_sa.integrations.faststream"],
    "mcp": ["safeagent_sa.integrations.mcp"],
    "fastmcp": ["safeagent_sa.integrations.fastmcp"],
    "langgraph": ["safeagent_sa.integrations.langgraph"],
    "pydantic-ai": ["safeagent_sa.integrations.pydantic_ai"],
    "openai-agents": ["safeagent_sa.integrations.openai_agents"],
    "dashboard": ["safeagent_sa.dashboard"],
    "sqladmin": ["safeagent_sa.integrations.sqladmin"],
}
"""What must be importable with one extra and nothing else."""

WITHOUT_EXTRA = {"agents", "asgi", "http", "messages", "webhooks", "wsgi"}
"""The integrations that need no package."""

OF_FRAMEWORK = {"litestar": "the app brings Litestar itself"}
"""The integrations that need a package for which there is no extra."""


def main() -> int:
    """Run the checks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--extras", nargs="*", choices=MODULES, help="check these extras alone, or all, and nothing else", default=None
    )
    parser.add_argument("--final", action="store_true", help="refuse placeholders, as before an upload")
    options = parser.parse_args()
    if options.final:
        with step("no placeholder is left"):
            refuse_placeholders((ROOT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with step("build"):
            sdist, wheel = build()
        if options.extras is not None:
            check_extras(options.extras or list(MODULES), wheel, work)
        else:
            check_files(sdist, wheel)
            for archive in (wheel, sdist):
                check_installed(archive, work / archive.suffix[1:])
    print("release-check: passed")
    return 0


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say how long a step took, or which one has failed."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"release-check: FAILED at: {name}", flush=True)
        raise
    print(f"{time.monotonic() - began:5.1f} s  {name}", flush=True)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, and end with its output where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def refuse_placeholders(pyproject: str) -> None:
    """End where the addresses of the project are not set."""
    left = [name for name, url in tomllib.loads(pyproject)["project"]["urls"].items() if PLACEHOLDER in url]
    if left:
        sys.exit(f"[project.urls] in pyproject.toml still has {PLACEHOLDER} in {', '.join(left)}: see docs/release.md")


def build() -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    return next(DIST.glob("*.tar.gz")), next(DIST.glob("*.whl"))


def check_files(sdist: Path, wheel: Path) -> None:
    """Check what can be seen without installing anything."""
    with step("twine check --strict"):
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with step("check-wheel-contents"):
        run(sys.executable, "-m", "check_wheel_contents", wheel)
    size = wheel.stat().st_size
    with step(f"the wheel has {size / 1024:.0f} KiB, of {MAX_WHEEL / 1024:.0f}"):
        if size > MAX_WHEEL:
            sys.exit(f"{wheel.name} has {size} bytes: look for what has come into it, or raise MAX_WHEEL")


def environment(folder: Path, requirement: str) -> Path:
    """Make a new environment with a requirement, by this one's pip; return its Python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", requirement)
    return python


def check_installed(archive: Path, folder: Path) -> None:
    """Install an archive, run its demo, and check its types, in a folder without the repository."""
    folder.mkdir()
    with step(f"install {archive.name}"):
        python = environment(folder / "venv", f"{archive}[asyncio,cli,otel]")
        where = run(python, "-c", "import safeagent_sa; print(safeagent_sa.__file__)", cwd=folder)
        if not Path(where.strip()).is_relative_to(folder):
            sys.exit(f"the installed package is {where}, and not in {folder}")
    with step("safeagent-sa demo"):
        run(python.parent / "safeagent-sa", "demo", cwd=folder)
    if archive.suffix == ".whl":
        check_types(python, folder)


def check_types(python: Path, folder: Path) -> None:
    """Check with both checkers that an app sees the types: py.typed and every annotation are in the wheel."""
    uses = folder / "uses.py"
    shutil.copy(ROOT / "tests" / "types" / "verbs.py", uses)
    (folder / "pyrightconfig.json").write_text('{"include": ["uses.py"], "typeCheckingMode": "standard"}')
    with step("mypy --strict"):
        run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, uses, cwd=folder)
    with step("pyright"):
        run(sys.executable, "-m", "pyright", "--project", folder, "--pythonpath", python, cwd=folder)


def check_extras(extras: list[str], wheel: Path, work: Path) -> None:
    """Install extras alone, and import what each is for."""
    for extra in extras:
        modules = MODULES[extra]
        with step(f"the extra {extra}: {', '.join(modules)}"):
            folder = work / extra
            python = environment(folder, f"{wheel}[{extra}]")
            run(python, "-c", f"import {', '.join(modules)}", cwd=work)
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
