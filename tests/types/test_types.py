"""Strict type checkers agree with `verbs.py`, on the SQLAlchemy line that the suite runs with."""

import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def check(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def strict(tmp_path):
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        f'{{"include": ["{HERE / "verbs.py"}"], "typeCheckingMode": "strict", "extraPaths": ["{ROOT}"],'
        ' "reportUnnecessaryTypeIgnoreComment": true, "enableTypeIgnoreComments": false}'
    )
    return config


@pytest.mark.thorough
def test_mypy_agrees_strictly():
    check("mypy", "--strict", "--warn-unused-ignores", str(HERE / "verbs.py"))


def test_pyright_agrees_strictly(strict):
    assert "0 errors" in check("pyright", "--project", str(strict), "--pythonpath", sys.executable)


@pytest.mark.thorough
def test_both_report_a_wrong_type(strict, tmp_path):
    wrong = tmp_path / "wrong.py"
    text = (HERE / "verbs.py").read_text()
    wrong.write_text(text.replace("assert_type(opened(7), PaymentReceipt)", "assert_type(opened(7), str)"))
    with pytest.raises(AssertionError, match="assert-type"):
        check("mypy", "--strict", str(wrong))
    strict.write_text(strict.read_text().replace(str(HERE / "verbs.py"), str(wrong)))
    with pytest.raises(AssertionError, match="assert_type"):
        check("pyright", "--project", str(strict), "--pythonpath", sys.executable)
