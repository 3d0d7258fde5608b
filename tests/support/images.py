"""Makes a PostgreSQL image for testcontainers from local server programs, for use without a registry.

The image has the server's folder, a shell, the libraries that both load, and an entry point with the variables of the
official image: POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB. In tests/, `python -m support.images` makes it again.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any


LOCAL = "postgres:17-local"
OWNER = 999  # the server refuses root; the official image has this number
HOME = "usr/lib/postgresql"

# The database is created before the server opens a port, so a server that answers is ready.
ENTRY_POINT = """\
#!/bin/sh
set -eu
[ "${1:-postgres}" = postgres ] || exec "$@"
shift
: "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  printf '%s\\n' "${POSTGRES_PASSWORD:?is not set}" | initdb --username="$POSTGRES_USER" --pwfile=/dev/stdin \\
    --no-sync --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust ${POSTGRES_INITDB_ARGS:-}
  echo 'host all all all md5' >>"$PGDATA/pg_hba.conf"
  [ "$POSTGRES_DB" = postgres ] || echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -c listen_addresses='*' "$@"
"""
CHANGES = [
    f"ENV PATH=/{HOME}/bin:/usr/bin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data",
    f"USER {OWNER}:{OWNER}",
    'ENTRYPOINT ["/entrypoint.sh"]',
    'CMD ["postgres"]',
    "EXPOSE 5432",
]


def build(client: Any, programs: Path, image: str = LOCAL) -> None:
    """Make the image from a folder of server programs; raise RuntimeError if that is impossible here."""
    if sys.platform != "linux":
        message = f"an image can be made on Linux only, not on {sys.platform}"
        raise RuntimeError(message)
    name, _, tag = image.partition(":")
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            fill(tar, programs)
        file.seek(0)
        chunks = iter(partial(file.read, 2**20), b"")
        answer = client.api.import_image_from_stream(chunks, repository=name, tag=tag, changes=CHANGES)
    if "error" in str(answer):
        message = f"Docker refuses the image: {answer}"
        raise RuntimeError(message)


def fill(tar: tarfile.TarFile, programs: Path) -> None:
    """Put all files of an image into an archive."""
    tree = programs.parent
    tar.add(tree, HOME, filter=_of_the_server)
    shell = Path(shutil.which("sh") or "/bin/sh").resolve()
    loaders = [shell, *programs.iterdir(), *tree.glob("lib/**/*.so*")]
    for library in sorted(set().union(*map(_loads, loaders))):
        if not Path(library).resolve().is_relative_to(tree.resolve()):
            _add(tar, library, Path(library).read_bytes())
    for place in ("bin/sh", "usr/bin/sh"):
        _add(tar, place, shell.read_bytes())
    for locale in Path("/usr/lib/locale").glob("C.[uU][tT][fF]*8"):  # built into newer C libraries
        tar.add(locale, str(locale), filter=_readable)
    _add(tar, "entrypoint.sh", ENTRY_POINT.encode())
    _add(tar, "etc/passwd", f"postgres:x:{OWNER}:{OWNER}::/var/lib/postgresql:/bin/sh\n".encode())
    _add(tar, "etc/group", f"postgres:x:{OWNER}:\n".encode())
    for place in ("var/lib/postgresql", "tmp"):
        folder = tarfile.TarInfo(place)
        folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o777, OWNER, OWNER
        tar.addfile(folder)


def _loads(file: Path) -> set[str]:
    """Return the paths of the libraries that a file loads; none for a file that is no binary."""
    found = subprocess.run(["ldd", file], check=False, capture_output=True, text=True).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(", found, re.MULTILINE))


def _add(tar: tarfile.TarFile, place: str, content: bytes) -> None:
    entry = tarfile.TarInfo(place.lstrip("/"))
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def _of_the_server(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Files for developers and readers only: two thirds of the size.
    unneeded = ("/include", "/lib/bitcode", "/share/doc", "/share/man", "/share/locale")
    return None if entry.name.removeprefix(HOME).startswith(unneeded) else _readable(entry)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode |= 0o555 if entry.isdir() or "/bin/" in entry.name else 0o444
    return entry


if __name__ == "__main__":
    import docker

    from support.servers import wheel_programs

    build(docker.from_env(), wheel_programs())
    print(LOCAL)
