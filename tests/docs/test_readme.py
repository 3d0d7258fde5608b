"""The README is short, its example runs as pasted, and its links work wherever it is read."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from support.pages import blocks


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short():
    assert len(README.encode()) <= 8 * 1024
    guarantees = README.partition("## What it guarantees")[2].partition("##")[0]
    assert len(re.findall(r"^\| ", guarantees, re.MULTILINE)) - 1 == 6


def test_the_example_is_short_and_runs_alone(tmp_path):
    (code,) = fences("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    assert [done.stdout] == fences("text")  # the real output


def test_its_commands_are_those_of_the_page_that_a_test_follows():
    page = [block.text for block in blocks("start/your-app.md") if block.language == "sh"]
    install, migrate, make = fences("sh")
    assert {install, migrate} <= set(page)
    targets = re.findall(r"^make (\S+)", make, re.MULTILINE)
    assert targets == ["demo", "test"]


LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
links_of = runpy.run_path(str(ROOT / "setup.py"))["with_absolute_links"]


def test_every_link_leads_to_a_file_of_the_repository():
    found = LINK.findall(README)
    assert len(found) >= 25
    assert [path for path in found if not (ROOT / path).is_file()] == []


def test_on_the_package_index_every_link_is_absolute_from_one_place():
    text = links_of(README, "https://example.org/their/copy/")
    assert "![The demo" in text
    assert "(https://example.org/their/copy/raw/HEAD/docs/demo.svg)" in text
    assert "(https://example.org/their/copy/blob/HEAD/docs/effects.md)" in text
    assert {link.partition("/HEAD/")[2] for link in LINK.findall(text)} == set(LINK.findall(README))
    assert links_of(text, "https://example.org/other") == text
    assert links_of(README, None) == README
