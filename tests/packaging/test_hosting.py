"""The files for a host say what the repository says, and hold no address that was made up."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from matrix import run as matrix
from nightly import run as nightly
from trove_classifiers import classifiers

import safeagent_sa


ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (GITHUB / "workflows").glob("*.yml")}
PLACEHOLDER = "OWNER"


def steps():
    for name, workflow in WORKFLOWS.items():
        for job, content in workflow["jobs"].items():
            for step in content["steps"]:
                yield f"{name}: {job}", step


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_placeholder_is_in_the_one_place():
    """The addresses of the project: everything else derives them from there, or names no address."""
    about = {
        "tools/release_check.py",
        "docs/release.md",
        "tests/packaging/test_hosting.py",
        "tests/packaging/test_release_check.py",
    }
    found = {
        name: re.findall(rf"https?://\S*{PLACEHOLDER}\S*", text)
        for name in tracked()
        if name not in about and (text := (ROOT / name).read_text(errors="ignore"))
    }
    assert {name for name, urls in found.items() if urls} <= {"pyproject.toml"}
    base = PROJECT["urls"]["Repository"]
    assert {url for url in PROJECT["urls"].values() if not url.startswith(base)} == set()
    assert [url.strip('"') for url in found["pyproject.toml"]] in ([], list(PROJECT["urls"].values()))


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.*")), ids=lambda path: path.name)
def test_no_file_for_the_host_names_an_address_of_the_project(path):
    assert re.findall(r"https?://|\S+@\S+\.\w+", re.sub(r"[\w/-]+@(v\d+|release/v\d+)", "", path.read_text())) == []


def test_every_action_is_pinned_by_a_tag_or_a_commit_and_the_waiver_is_the_only_one():
    used = {step["uses"] for _, step in steps() if "uses" in step}
    assert used
    by_tag = {name for name in used if re.fullmatch(r"[\w./-]+@(release/)?v\d+", name)}
    by_commit = {name for name in used if re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)}
    assert used == by_tag | by_commit
    waivers = GITHUB / "zizmor.yml"
    assert waivers.exists() == bool(by_tag)
    if by_tag:
        assert set(yaml.safe_load(waivers.read_text())["rules"]) == {"unpinned-uses"}
    texts = "".join(path.read_text() for path in (GITHUB / "workflows").iterdir())
    assert "zizmor: ignore" not in texts


def test_every_workflow_grants_nothing_and_every_job_what_it_needs():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {}, name
        for job in workflow["jobs"].values():
            assert "timeout-minutes" in job, name
            rights = set(job.get("permissions", {}).items())
            assert rights <= {("contents", "read"), ("id-token", "write"), ("pages", "write")}, name


def test_no_expression_stands_in_a_script():
    for where, step in steps():
        assert "${{" not in step.get("run", ""), where


def test_every_target_that_a_workflow_runs_exists():
    called = set(re.findall(r"\bmake ([a-z-]+)", " ".join(step.get("run", "") for _, step in steps())))
    called |= {row["target"] for row in WORKFLOWS["ci"]["jobs"]["suite"]["strategy"]["matrix"]["include"]}
    called |= set(WORKFLOWS["nightly"]["jobs"]["target"]["strategy"]["matrix"]["target"])
    assert called <= TARGETS


def test_ci_runs_the_cells_of_the_matrix():
    rows = WORKFLOWS["ci"]["jobs"]["matrix"]["strategy"]["matrix"]["include"]
    assert [(row["cell"], row["python"]) for row in rows] == [(cell.name, cell.python) for cell in matrix.CELLS]


def test_the_nightly_workflow_runs_the_nightly_targets():
    targets = WORKFLOWS["nightly"]["jobs"]["target"]["strategy"]["matrix"]["target"]
    assert [*targets, "matrix"] == nightly.TARGETS


def test_one_job_stands_for_all_of_ci():
    jobs = WORKFLOWS["ci"]["jobs"]
    last = jobs["all-green"]
    assert set(last["needs"]) == set(jobs) - {"all-green"}
    assert last["steps"][0]["run"].count("success") == len(last["needs"])


def test_only_the_publishing_job_may_publish_and_it_builds_nothing():
    jobs = WORKFLOWS["release"]["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job["permissions"]] == ["publish"]
    publish = jobs["publish"]
    assert (publish["environment"], publish["needs"]) == ("pypi", "build")
    assert all("run" not in step for step in publish["steps"])
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "cache" not in yaml.safe_dump(WORKFLOWS["release"])
    assert "make release-check ARGS=--final" in [step.get("run") for step in jobs["build"]["steps"]]


def test_the_form_for_a_second_execution_asks_for_what_finds_its_cause():
    form = (GITHUB / "ISSUE_TEMPLATE" / "it-ran-twice.yml").read_text()
    body = {each.get("id"): each for each in yaml.safe_load(form)["body"]}
    for needed in ("safeagent-sa show", "safeagent-sa doctor --json", "pip freeze", "Isolation level"):
        assert needed in form
    assert all(body[name]["validations"]["required"] for name in ("show", "doctor", "versions", "isolation", "code"))
    assert "docs/when-can-it-still-run-twice.md" in form


def test_the_hooks_are_parts_of_make_check():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    check = re.search(r"^check:.*?\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[0]
    for hook in repo["hooks"]:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        assert hook["entry"].replace(".venv", "$(BIN)").replace("$(BIN)/bin", "$(BIN)") in check, hook["id"]


def test_the_classifiers_are_those_of_the_index():
    assert set(PROJECT["classifiers"]) <= classifiers


def test_the_citation_has_the_version_and_the_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (safeagent_sa.__version__, PROJECT["license"])


@pytest.mark.parametrize(
    "page", ["SECURITY.md", "CODE_OF_CONDUCT.md", "docs/release.md", "docs/support.md", "docs/security.md"]
)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, anchor


def test_the_security_policy_counts_a_second_execution():
    policy = (ROOT / "SECURITY.md").read_text()
    assert "two transactions of one `(scope, request_id)` commit" in policy
    assert "Report a vulnerability" in policy
