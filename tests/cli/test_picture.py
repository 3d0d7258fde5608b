"""The picture of the README is what the demo prints."""

import re
import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
tool = runpy.run_path(str(ROOT / "tools" / "picture.py"))


def words(drawn):
    """Return what a picture shows; the ids of processes differ from run to run, and so do the two workers that race."""
    lines = re.findall(r"<text [^>]*>([^<]*)</text>", drawn)
    shown = re.sub(r"worker&#160;\d+\s*", "worker ", "".join(lines).replace("&#160;&#160;", "&#160;"))
    return sorted(re.findall(r"\w+", shown.replace("&#160;", " ")))


@pytest.mark.thorough
def test_the_picture_shows_what_the_demo_prints_and_loads_nothing():
    committed = tool["PICTURE"].read_text()
    assert words(tool["draw"]()) == words(committed), "run `make picture`"
    assert re.findall(r"(?:href|src)=|url\(https?:|@font-face|<script", committed) == []
    assert "NOT" not in committed
