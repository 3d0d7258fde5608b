"""The benchmarks run, do the work that they measure, and make the page of the docs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.timeout(600)  # these tests run whole programs, next to other tests

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["latency", "hot", "clients", "profile", "imports"]
SLOW = ["instructions", "counts", "batches", "growth"]


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def page_of(results):
    script = "import json, sys; from benchmarks import page; print(page.markdown(json.load(open(sys.argv[1]))), end='')"
    return python("-c", script, str(results))


@pytest.fixture
def run(server, tmp_path):
    """Run sections with the fewest turns; return the run, its output and its page."""

    def run(sections):
        results = tmp_path / "results.json"
        url = server.url.render_as_string(hide_password=False)
        form = ("--rounds", "2", "--transactions", "2", "--url", url, "--json", str(results))
        printed = python("-m", "benchmarks", *form, "--only", *sections)
        found = json.loads(results.read_text())
        assert list(found["sections"]) == sections
        return found, printed, page_of(results)

    return run


@pytest.mark.timeout(300)
@pytest.mark.thorough
def test_a_short_run_has_every_figure_and_makes_a_page(run):
    found, printed, page = run(QUICK)
    sections = found["sections"]
    for network in ("0 ms", "1 ms"):
        part = sections["latency"][network]
        assert {"bare", "guarded", "replay", "raw", "handwritten", "safeagent"} <= part["contestants"].keys()
        for row in part["contestants"].values():
            assert len(row["round_ms"]) == 2
            assert all(value > 0 for value in row["round_ms"])
    # the network delay is real: at least three round trips of 1 ms each
    assert sections["latency"]["1 ms"]["round_trip_ms"] >= 1
    assert min(sections["latency"]["1 ms"]["contestants"]["bare"]["round_ms"]) >= 3
    # the run has compared the tables with its work, and counted the rows
    assert found["run"]["stored"]["payments"] > found["run"]["stored"]["receipts"] > 0
    for shares in sections["profile"]["shares"].values():
        assert abs(sum(shares.values()) - 1) < 1e-4
    assert "new / bare, 1 ms" in printed
    assert "| guarded |" in page
    assert "(benchmarks/latency.svg)" in page


@pytest.mark.stress
def test_what_is_counted_is_exact_and_large_tables_are_filled(run):
    found, _, page = run(SLOW)
    instructions = found["sections"]["instructions"]
    for name, stages in instructions["stages"].items():
        whole = instructions["contestants"][name]["instructions"]
        assert 0.9 * whole < sum(stage["instructions"] for stage in stages.values()) < 1.1 * whole
        assert all(stage["calls"] for label, stage in stages.items() if label != "everything else")
    assert "| new / bare, pipelined |" in page
    assert "A gate fails the build" in page
    counts, batches = found["sections"]["counts"], found["sections"]["batches"]
    assert counts["guarded"]["round_trips"] - counts["bare"]["round_trips"] == 2
    assert counts["replay"]["wal_bytes"] == 0
    assert counts["raw"]["wal_bytes"] == counts["guarded"]["wal_bytes"] > counts["bare"]["wal_bytes"]
    assert counts["handwritten"]["statements"] > counts["guarded"]["statements"]
    assert batches["1000"]["new"]["statements"] == batches["100"]["new"]["statements"] <= 3
    assert found["sections"]["growth"]["random"]["new 100000"]["ratio"] > 0
    assert "(benchmarks/growth.svg)" in page


def test_without_valgrind_the_run_says_how_to_install_it(server):
    url = server.url.render_as_string(hide_password=False)
    command = (sys.executable, "-m", "benchmarks", "--only", "instructions", "--url", url)
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install valgrind" in done.stderr


def test_a_gate_fails_for_one_instruction_too_many():
    script = """
from benchmarks.instructions import AGAINST
from benchmarks.targets import GATES, NOISE, gates
def held(excess):
    rows = {gate.mine: {"ratio": gate.gate * NOISE + excess} for gate in GATES}
    return [each["held"] for each in gates({"instructions": {"contestants": rows}})]
assert all(held(0)) and not any(held(1e-6)) and len(held(0)) == 10 and gates({}) == []
assert {gate.mine for gate in GATES} <= AGAINST.keys()
"""
    python("-c", script)


@pytest.mark.parametrize(("whole", "is_another_path"), [(80, True), (95, False), (105, False), (125, True)])
def test_stages_that_are_not_those_of_the_whole_end_the_run(whole, is_another_path):
    """A guard that meets wrapped functions may take another path than the one that is shown."""
    script = f"""
from benchmarks.instructions import compare
compare({{"pipelined": {{"claim": {{"instructions": 60}}, "driver": {{"instructions": 40}}}}}}, {{"pipelined": {whole}}})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == is_another_path, done.stderr
    assert ("the stages of pipelined are" in done.stderr) == is_another_path


def test_the_page_of_the_docs_is_made_from_its_figures():
    figures = ROOT / "docs" / "benchmarks" / "results.json"
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert page == page_of(figures)
    plots = re.findall(r"\(benchmarks/(\w+)\.svg\)", page)
    assert "latency" in plots
    for name in plots:
        assert (figures.parent / f"{name}.svg").read_text().startswith("<?xml")


@pytest.mark.thorough
def test_large_tables_are_filled_split_purged_and_made_one_again(server, tmp_path):
    results = tmp_path / "large.json"
    url = server.url.render_as_string(hide_password=False)
    few = ("--rounds", "2", "--transactions", "2", "--times", "20")
    printed = python(
        "-m", "benchmarks.large", "--sizes", "1000", "--partitions", "4", *few, "--url", url, "--json", str(results)
    )
    found = json.loads(results.read_text())
    for kind in ("plain", "partitioned"):
        figures = found["sizes"]["1000"][kind]
        assert figures["purged_rows"] == 10
        assert all(value > 0 for value in figures.values())
    assert found["sizes"]["1000"]["partitioned"]["rows_of_largest_part"] < 400
    assert [row["relation_locks"] for row in found["parts"].values()] == [3, 10, 10, 10]
    assert "| bytes a request |" in printed
