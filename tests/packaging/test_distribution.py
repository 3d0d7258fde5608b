"""Wheel and sdist are complete, and the installed wheel works in a new virtual environment."""

import email
import runpy
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from support.once import once


# `make test-all` has them, and `make release-check` looks at the packages, too.
pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]

# folders at the top of the repository that are installed inside the package
MAPPED = {"examples": "safeagent_sa/examples", "migrations": "safeagent_sa/migrations"}


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders):
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders, cwd=ROOT).splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """The sdist, and the wheel built from it; built from a copy, so that no old build/ leaks in."""

    def build(folder):
        source = tmp_path_factory.mktemp("source")
        for name in tracked("."):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
        run(sys.executable, "-m", "build", "--outdir", folder, source)

    return once(tmp_path_factory, "dist", build)


def environment(folder, requirement):
    """Create a virtual environment with a requirement, with the pip of this one; return its Python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", requirement)
    return python


@pytest.fixture(scope="session")
def fresh(dist, tmp_path_factory):
    """A virtual environment with only the wheel and its core dependencies."""
    wheel = next(dist.glob("*.whl"))
    return once(tmp_path_factory, "venv", lambda folder: environment(folder, wheel)) / "bin" / "python"


def test_the_wheel_has_every_module_and_data_file(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = set()
    for name in tracked("safeagent_sa", "pytest_safeagent_sa.py", *MAPPED):
        top, _, rest = name.partition("/")
        expected.add(f"{MAPPED[top]}/{rest}" if top in MAPPED else name)

    assert inside == expected
    assert "safeagent_sa/py.typed" in inside
    assert "safeagent_sa/migrations/script.py.mako" in inside


def test_the_wheel_contains_the_licence(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        licence = next(name for name in wheel.namelist() if name.endswith("/LICENSE"))
        assert b"Apache License" in wheel.read(licence)


def test_the_metadata_has_the_readme_with_links_that_work_on_the_package_index(dist):
    readme = runpy.run_path(str(ROOT / "setup.py"))["with_absolute_links"]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(wheel.read(name).decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == readme((ROOT / "README.md").read_text(), urls.get("Repository")).strip()


def test_the_sdist_has_all_files_to_work_on_the_library(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}

    assert {
        "alembic.ini",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CODE_OF_CONDUCT.md",
        "CONTRIBUTING.md",
        "Makefile",
        "SECURITY.md",
        ".pre-commit-config.yaml",
    } <= inside
    assert (
        tracked(
            ".github",
            "deploy",
            "docs",
            "tests",
            "tools",
            "migrations",
            "examples",
            "benchmarks",
            "safeagent_sa",
            "pytest_safeagent_sa.py",
        )
        <= inside
    )


def test_the_installed_wheel_needs_no_extra(fresh, tmp_path):
    run(
        fresh,
        "-c",
        "import safeagent_sa, safeagent_sa.sqlite, safeagent_sa.compat, safeagent_sa.schema, sys;"
        "assert not {'typer', 'rich', 'psycopg', 'greenlet'} & set(sys.modules)",
        cwd=tmp_path,
    )


def test_pytest_finds_the_plugin_of_the_installed_wheel(dist, tmp_path):
    """The extra `testing` installs all that the fixture needs; only pytest loads the entry point."""
    python = environment(tmp_path / "venv", f"{next(dist.glob('*.whl'))}[testing]")
    (tmp_path / "test_it.py").write_text("def test_it(explore_faults):\n    assert callable(explore_faults)\n")
    assert "1 passed" in run(python, "-m", "pytest", "test_it.py", cwd=tmp_path)


def test_the_command_line_without_its_extra_names_the_package_to_install(fresh, tmp_path):
    for command in ([fresh.parent / "safeagent-sa"], [fresh, "-m", "safeagent_sa"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode != 0
        assert "safeagent_sa[cli]" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_packaged_migrations_run_from_the_installed_wheel(fresh, tmp_path):
    script = f"""
import io
from importlib.util import find_spec
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from safeagent_sa import schema
config = Config(output_buffer=io.StringIO())
config.set_main_option("script_location", next(iter(find_spec("safeagent_sa.migrations").submodule_search_locations)))
engine = create_engine("sqlite:///{tmp_path / "wheel.db"}")
config.attributes["connection"] = engine
command.upgrade(config, "head")
schema.verify(engine)
"""
    run(fresh, "-c", script, cwd=tmp_path)
