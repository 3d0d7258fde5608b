"""Each file in changelog.d has a known kind, and the changelog is built from all of them."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
KINDS = [
    kind["directory"] for kind in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
]


def odd(folder):
    """Return the files with a wrong name or without text."""
    name = re.compile(rf"\+[a-z0-9-]+\.({'|'.join(KINDS)})\.md")
    changes = [path for path in folder.iterdir() if path.name != "README.md"]
    return sorted(path.name for path in changes if not name.fullmatch(path.name) or not path.read_text().strip())


def test_every_file_names_a_known_kind():
    assert odd(ROOT / "changelog.d") == []


@pytest.mark.parametrize("name", ["+a.feature.md", "a.added.md", "+a.added", "+a.md", "12.added.md", "+A b.added.md"])
def test_wrong_names_are_found(tmp_path, name):
    (tmp_path / "README.md").write_text("how")
    (tmp_path / "+a-b.added.md").write_text("One more verb.")
    (tmp_path / "+empty.added.md").write_text("\n")
    (tmp_path / name).write_text("One more verb.")
    assert odd(tmp_path) == sorted(["+empty.added.md", name])


def test_the_page_explains_every_kind():
    page = (ROOT / "changelog.d" / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == KINDS


def test_a_release_puts_every_change_above_the_last_one(tmp_path):
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "changelog.d", tmp_path / "changelog.d")
    before = (tmp_path / "CHANGELOG.md").read_text()
    for kind in KINDS:
        (tmp_path / "changelog.d" / f"+{kind}.{kind}.md").write_text(f"What was {kind}.")
    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", "9.9.9", "--date", "2030-01-01"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)

    built = (tmp_path / "CHANGELOG.md").read_text()
    head, _, rest = before.partition("<!-- new releases go below -->\n")
    assert built.startswith(head)
    assert built.endswith(rest)
    new = built[len(head) : -len(rest)]
    assert "## 9.9.9 (2030-01-01)" in new
    assert [new.index(f"What was {kind}.") for kind in KINDS] == sorted(
        new.index(f"What was {kind}.") for kind in KINDS
    )
    assert [path.name for path in (tmp_path / "changelog.d").glob("+*")] == []
