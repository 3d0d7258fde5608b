"""The nightly run ends with a table of all targets, even if some have failed."""

import re
from pathlib import Path

from nightly import run
from support import bounded
from support.clusters import state
from support.waiting import until


ROOT = Path(__file__).resolve().parents[2]


def test_every_target_is_in_the_table_and_a_failure_stops_no_other(tmp_path, capsys):
    (tmp_path / "Makefile").write_text("bad:\n\tfalse\ngood:\n\ttouch done\n")
    assert run.main(["bad", "good"], tmp_path) == 1
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]

    assert (tmp_path / "done").exists()
    assert [row[:2] for row in table] == [["target", "result"], ["bad", "FAILED"], ["good", "passed"]]
    assert all(float(minutes) >= 0 for _, _, minutes in table[1:])


def test_a_target_without_an_end_stops_no_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bounded, "GRACE", 3)  # a job in the background ignores that it is interrupted
    endless = "setsid tail -f /dev/null & echo $$! > child; wait"  # in another session
    (tmp_path / "Makefile").write_text(f"endless:\n\t{endless}\ngood:\n\ttouch done\n")
    assert run.main(["endless", "good"], tmp_path, limit=3) == 1
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]

    assert (tmp_path / "done").exists()
    assert [row[:3] for row in table] == [["endless", "TOO", "LONG"], ["good", "passed", "0.0"]]
    child = int((tmp_path / "child").read_text())
    until(f"the end of process {child}", lambda: state(child) in (None, "Z"))


def test_it_passes_if_all_targets_pass(tmp_path):
    (tmp_path / "Makefile").write_text("good:\n\ttrue\n")
    assert run.main(["good"], tmp_path) == 0


def test_the_names_of_the_targets_are_for_the_run_alone(tmp_path, monkeypatch):
    """`make nightly ARGS=first` handed "first" to the program of each target, too."""
    (tmp_path / "Makefile").write_text("first:\n\ttest -z '$(ARGS)' && test '$(SQLALCHEMY)' = 2.0\n")
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=first SQLALCHEMY=2.0")  # as make sets it
    assert run.main(["first"], tmp_path) == 0


def test_its_targets_exist():
    there = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(run.TARGETS) <= set(there)
