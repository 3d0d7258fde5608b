"""The lease protocol in Spin: all states of three workers, with the worst clock and a crash at every step, and two mutants."""

import shutil
import subprocess
from pathlib import Path

import pytest


MODEL = Path(__file__).with_name("lease.pml")

pytestmark = pytest.mark.stress


@pytest.fixture(autouse=True, scope="module")
def _model_checker():
    if not (shutil.which("spin") and shutil.which("gcc")):
        pytest.fail("the lease protocol is checked by Spin, which is not here: apt-get install spin gcc")


def errors(folder, *options):
    """Check the model with options; return the number of errors and of states."""
    for command in (["spin", *options, "-a", str(MODEL)], ["gcc", "-O2", "-DSAFETY", "-o", "pan", "pan.c"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    said = subprocess.run(["./pan"], cwd=folder, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in said.splitlines() if "errors:" in line]
    (states,) = [line for line in said.splitlines() if "states, stored" in line]
    return int(line.rpartition("errors:")[2]), int(float(states.split()[0]))


@pytest.mark.parametrize("policy", [(), ("-DRETRY",)])
def test_the_protocol_holds_in_every_state(tmp_path, policy):
    found, states = errors(tmp_path, *policy)
    print(f"\n{policy or 'park'}: {states} states")
    assert found == 0
    assert states > 1000


@pytest.mark.parametrize("mutant", [("-DNO_MARK",), ("-DRETRY", "-DNO_FENCE")])
def test_a_mutant_of_the_protocol_is_found(tmp_path, mutant):
    assert errors(tmp_path, *mutant)[0] > 0
