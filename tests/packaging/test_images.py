"""The suite uses the official PostgreSQL image, or makes one if no registry answers."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

import docker.errors
import pytest
from support import images, servers


ROOT = Path(__file__).resolve().parents[2]


class Engine:
    """The images of a Docker client: some are present, some can be pulled."""

    def __init__(self, *here, registry=()):
        self.images, self.here, self.registry = self, here, registry

    def get(self, name):
        if name not in self.here:
            raise docker.errors.ImageNotFound(name)

    def pull(self, name):
        if name not in self.registry:
            message = "no registry"
            raise docker.errors.APIError(message)


@pytest.mark.parametrize(
    ("engine", "image"),
    [
        (Engine(registry=[servers.OFFICIAL]), servers.OFFICIAL),
        (Engine(servers.OFFICIAL), servers.OFFICIAL),
        (Engine(images.LOCAL), images.LOCAL),
        (Engine(), images.LOCAL),
    ],
    ids=["pulled", "here", "made before", "made"],
)
def test_the_official_image_is_used_if_it_is_available(engine, image, monkeypatch):
    built = []
    monkeypatch.setattr(images, "build", lambda client, programs: built.append((client, programs)))
    assert servers._image(engine) == image
    assert built == ([] if engine.here or engine.registry else [(engine, servers.wheel_programs())])


def test_without_an_image_the_next_kind_of_server_is_tried(monkeypatch):
    def refuse(*_):
        raise RuntimeError("an image can be made on Linux only")

    monkeypatch.setattr(images, "build", refuse)
    with pytest.raises(servers.NotHere, match=r"no registry.*Linux only"):
        servers._image(Engine())


def test_an_image_has_all_libraries_that_its_programs_load():
    file = io.BytesIO()
    programs = servers.wheel_programs()
    with tarfile.open(fileobj=file, mode="w") as tar:
        images.fill(tar, programs)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        names = {f"/{name}" for name in tar.getnames()}
        for name in ("initdb", "postgres", "psql"):
            assert f"/{images.HOME}/bin/{name}" in names
            loaded = subprocess.run(["ldd", programs / name], check=True, capture_output=True, text=True).stdout
            for library in re.findall(r"(/\S+) \(", loaded):
                own = Path(library).resolve().is_relative_to(programs.parent.resolve())
                assert (f"/{images.HOME}/lib/{Path(library).name}" if own else library) in names
        entry_point = tar.getmember("entrypoint.sh")
        assert entry_point.mode & 0o111
        script = tar.extractfile(entry_point).read()
    subprocess.run(["sh", "-n"], input=script, check=True)


def test_nothing_outside_the_repository_is_used():
    for name in (".ci/run", "Makefile"):
        assert re.findall(r"\.\./\S+", (ROOT / name).read_text()) == [], name
