"""`make release-check` knows every extra and every integration, and refuses what must not be uploaded."""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "release_check.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]


def test_every_extra_is_installed_alone():
    assert set(TOOL["MODULES"]) == set(PROJECT["optional-dependencies"])


def test_every_integration_is_imported_with_its_extra_or_needs_none():
    there = {path.stem for path in (ROOT / "safeagent_sa" / "integrations").iterdir() if not path.stem.startswith("_")}
    imported = {
        name.rpartition(".")[2] for names in TOOL["MODULES"].values() for name in names if ".integrations." in name
    }
    assert there == imported | TOOL["WITHOUT_EXTRA"] | set(TOOL["OF_FRAMEWORK"])


def test_what_needs_no_extra_is_imported_without_one():
    names = ", ".join(f"safeagent_sa.integrations.{name}" for name in sorted(TOOL["WITHOUT_EXTRA"]))
    frameworks = "{'starlette', 'flask', 'fastapi', 'mcp', 'celery', 'pydantic'}"
    script = f"import sys, {names}\nassert not {frameworks} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_a_release_with_placeholders_is_refused_and_names_them():
    with pytest.raises(SystemExit, match="still has OWNER in Repository"):
        TOOL["refuse_placeholders"](PYPROJECT.replace("https://github.com/acme/", "https://github.com/OWNER/"))
    TOOL["refuse_placeholders"](PYPROJECT.replace("OWNER", "acme"))


def test_a_step_that_fails_is_named_and_ends_the_check(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no such file"), TOOL["step"]("copy"):
        TOOL["run"](sys.executable, "-c", "import sys; sys.exit('no such file')")
    assert capsys.readouterr().out == "release-check: FAILED at: copy\n"
    empty = tmp_path / "a-1-py3-none-any.whl"
    empty.write_bytes(b"PK")
    with pytest.raises(SystemExit, match="twine check --strict"):
        TOOL["check_files"](empty, empty)
