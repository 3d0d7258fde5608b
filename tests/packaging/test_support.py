"""docs/support.md says what `pyproject.toml`, the matrix, CI and the nightly run say."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from matrix import run as matrix
from matrix.parts import SERVERS
from nightly import run as nightly
from packaging.requirements import Requirement
from support.ports import PORTS


ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PAGE = (ROOT / "docs" / "support.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
MAKEFILE = (ROOT / "Makefile").read_text()


def table(section):
    """The rows of the first table of a section, without its head."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def floor(requirement):
    """A requirement as the page writes it: `pydantic 2.10`."""
    parsed = Requirement(requirement)
    (version,) = [each.version for each in parsed.specifier] or [""]
    return f"{parsed.name.removesuffix('-binary')} {version}".strip()


FLOORS = {floor(each).split()[0]: floor(each).split()[1] for each in PROJECT["dependencies"]}


def test_the_versions_are_those_of_the_package_and_the_matrix():
    found = dict(table("Versions"))
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert found["Python"].split(", ") == classifiers == sorted({cell.python for cell in matrix.CELLS}, key=version)
    assert PROJECT["requires-python"] == f">={classifiers[0]}"
    assert found["SQLAlchemy"] == f"{FLOORS['sqlalchemy']} and newer"
    assert found["Alembic"] == f"{FLOORS['alembic']} and newer"
    assert found["PostgreSQL"] == f"{min(SERVERS, key=int)} and newer"
    engines = (ROOT / "docs" / "engines.md").read_text()
    for name in ("PostgreSQL", "SQLite"):
        assert f"| {name} {found[name].replace(' and newer', '')} or newer" in engines


def version(text):
    return tuple(map(int, text.split(".")))


def test_the_cells_are_those_of_the_matrix():
    cells = [
        [cell.name, cell.python, cell.postgresql, FLOORS["sqlalchemy"] if cell.at_floors else cell.sqlalchemy]
        for cell in matrix.CELLS
    ]
    assert table("The matrix") == cells
    run = {int(cell.postgresql) for cell in matrix.CELLS}
    between = sorted(set(range(min(run), max(run))) - run)
    assert f"PostgreSQL {' and '.join(map(str, between))} lie between two versions that are run" in PAGE


def test_every_driver_is_a_port_and_its_lowest_version_is_declared():
    rows = table("Drivers")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    assert named == set(PORTS) - {"postgresql_key"}  # a way to claim, and no driver
    extras = [each for lines in PROJECT["optional-dependencies"].values() for each in lines]
    declared = {floor(each) for each in [*extras, *filter(is_text, PYPROJECT["dependency-groups"]["test"])]}
    for _, driver, needed, _ in rows:
        name = "psycopg" if driver.startswith("psycopg 3") else driver.split()[0]
        assert not needed or f"{name} {needed}" in declared, driver


def is_text(entry):
    return isinstance(entry, str)


def test_every_extra_is_there_with_what_it_needs():
    assert dict(table("Frameworks")) == {
        name: ", ".join(map(floor, needed)) for name, needed in PROJECT["optional-dependencies"].items()
    }


def test_every_target_is_run_where_the_page_says():
    rows = {target: where for target, _, where in table("What is run where")}
    assert set(rows) <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    in_ci = set(re.findall(r"\bmake ([a-z-]+)", CI))
    assert {target for target, where in rows.items() if "each change" in where} <= in_ci
    suite = yaml.safe_load(WORKFLOW.read_text())["jobs"]["suite"]["strategy"]["matrix"]["include"]
    whole = {target for target, where in rows.items() if "each change" in where.split(", ")}
    assert whole == {"check", *(row["target"] for row in suite)}
    assert {target for target, where in rows.items() if "nightly" in where} == set(nightly.TARGETS)


def test_every_promise_of_a_step_has_its_test():
    sources = "".join(path.read_text() for path in (ROOT / "tests" / "migrations").glob("test_*.py"))
    rows = table("What a schema step promises")
    assert len(rows) >= 6
    for promise, tests in rows:
        assert tests, promise
        for test in tests.split(", "):
            assert re.search(rf"^def {test}\(", sources, re.MULTILINE), test


def test_nothing_has_an_upper_bound():
    groups = [each for lines in PROJECT["optional-dependencies"].values() for each in lines]
    for each in [*PROJECT["dependencies"], *groups]:
        assert {clause.operator for clause in Requirement(each).specifier} <= {">="}, each


@pytest.mark.parametrize(
    "section", ["Versions", "The matrix", "Drivers", "Frameworks", "What is run where", "How long"]
)
def test_every_table_has_rows(section):
    assert len(table(section)) >= 4
