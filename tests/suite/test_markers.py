"""What `make test` leaves out is what its summary names: one list in three places."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
# Each with the target that runs it.
MARKERS = dict(re.findall(r"(\w+): .*by `make ([a-z-]+)` only", "\n".join(SETTINGS["markers"])))


def left_out(expression):
    return set(re.findall(r"\bnot (\w+)", expression))


def test_the_suite_leaves_out_what_names_a_target():
    assert left_out(SETTINGS["addopts"][2]) == set(MARKERS)


def test_test_all_leaves_out_what_needs_more_than_python_or_is_long():
    (everywhere,) = re.findall(r"^EVERYWHERE = (.*)$", MAKEFILE, re.MULTILINE)
    assert left_out(everywhere) == {marker for marker, target in MARKERS.items() if target != "test-all"}


def test_each_target_runs_its_marker():
    for marker, target in MARKERS.items():
        if target != "test-all":
            (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
            assert re.search(rf"-m {marker}\b", recipe), (marker, recipe)


def test_the_last_words_of_a_run_name_them():
    one = f"{Path(__file__).relative_to(ROOT)}::test_each_target_runs_its_marker"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *_, words, closing = done.stdout.splitlines()
    assert closing.startswith("1 passed"), done.stdout + done.stderr
    assert words.startswith("Left out: ")
    assert {
        marker: f"`make {target}`" in words for marker, target in MARKERS.items() if f"{marker} (" in words
    } == dict.fromkeys(MARKERS, True)
