"""docs/capacity.md: its arithmetic runs as pasted, prints what the page shows, and goes by the measured constants."""

import contextlib
import io
import json

from support.pages import ROOT, blocks

from benchmarks import large


PAGE = "capacity.md"
TEXT = (ROOT / "docs" / PAGE).read_text()


def run():
    """Run the blocks in order; return what each printed, and the names that they have made."""
    names, printed = {}, []
    for block in blocks(PAGE):
        if block.language == "python":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block.text, PAGE, "exec"), names)
            printed.append(said.getvalue())
    return names, printed


def test_the_page_shows_what_its_blocks_print():
    _, printed = run()
    shown = [block.text for block in blocks(PAGE) if block.language == "text"]
    assert [each for each in printed if each] == shown
    assert len(shown) == 2


def test_the_constants_are_the_measured_ones():
    names, _ = run()
    figures = json.loads(large.RESULTS.read_text())
    largest, none, some = (
        figures["sizes"][str(max(large.SIZES))]["plain"],
        figures["parts"]["0"],
        figures["parts"]["64"],
    )
    near = {
        "BYTES": largest["bytes"] / max(large.SIZES),
        "NEW_CPU": none["new_server_us"] / 1000,
        "REPLAY_CPU": none["replay_server_us"] / 1000,
        "WALKED": max(large.SIZES) / largest["purge_s"],
        "PARTS_NEW": (some["new_server_us"] - none["new_server_us"]) / 1000,
        "PARTS_REPLAY": (some["replay_server_us"] - none["replay_server_us"]) / 1000,
    }
    for name, measured in near.items():
        assert abs(names[name] - measured) <= 0.1 * measured, (name, measured)
        assert f"{names[name]:,}" in TEXT, name
    counted = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())["sections"]["counts"]
    bare, guarded = counted["bare"]["wal_bytes"], counted["guarded"]["wal_bytes"]
    assert (names["WAL_BARE"], names["WAL_GUARD"]) == (bare, guarded - bare)
    assert (none["relation_locks"], some["relation_locks"]) == (3, 10)


def test_more_of_each_asks_for_more():
    names, _ = run()
    usual = {"servers": 4, "pool": 5, "rate": 1_000}
    small = names["plan"](**usual)
    for change, number in (
        ({"servers": 8}, "connections, at most"),
        ({"rate": 2_000}, "CPU of the server, cores"),
        ({"days": 180}, "disk, GB"),
        ({"duplicates": 0.1}, "connections at work"),
        ({"batch": 1000}, "locks, at most"),
        ({"partitions": 64}, "CPU of the server, cores"),
    ):
        assert names["plan"](**usual | change)[number] > small[number], change
