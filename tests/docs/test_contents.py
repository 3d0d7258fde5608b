"""The pages hang together: each is in an index, each link and anchor leads somewhere, and what they name exists."""

import inspect
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn
from typer.main import get_command

import safeagent_sa
from safeagent_sa import errors, events, models
from safeagent_sa.cli._app import app


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from _site import contents, readers  # noqa: E402


PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]+)?\)")


def anchors(path):
    """Return the anchors that GitHub and the site make of the headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def broken(path):
    for where, anchor in LINK.findall(FENCE.sub("", path.read_text())):
        target = (path.parent / where).resolve() if where else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor[1:] not in anchors(target)):
            yield f"{where}{anchor}"


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_every_page_is_in_an_index():
    missing = contents.in_no_index(DOCS)
    assert missing == [], f"name these pages in the list of docs/how-to.md or of another part: {missing}"


def test_every_entry_of_an_index_is_a_page():
    gone = [
        (path.name, entry)
        for path in PAGES
        for entry in contents.entries(path.relative_to(DOCS).with_suffix("").as_posix(), path.read_text())
        if not (path.parent / f"{entry}.md").exists()
    ]
    assert gone == []


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md"), ROOT / "tests" / "README.md"], ids=name_of)
def test_every_link_and_anchor_leads_somewhere(page):
    assert list(broken(page)) == []


def test_what_is_missing_is_found(tmp_path):
    (tmp_path / "index.md").write_text("# Pages\n\n* [One](one.md): first\n* [Gone](gone.md): nothing\n")
    (tmp_path / "one.md").write_text(
        "# One\n\n## A part\n\n[here](#a-part) [there](#no-part) [two](two.md#c) [3](3.md)\n"
    )
    (tmp_path / "two.md").write_text("# Two\n\n```sh\n# c\n```\n")
    assert contents.in_no_index(tmp_path) == ["two"]
    assert list(broken(tmp_path / "one.md")) == ["#no-part", "two.md#c", "3.md"]
    assert list(broken(tmp_path / "index.md")) == ["gone.md"]


def test_every_page_has_one_title_and_begins_with_a_sentence():
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, page
        assert text.startswith("# "), page


def test_every_command_that_a_page_names_exists():
    commands = get_command(app).commands
    named = {
        (name_of(page), command)
        for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for command in re.findall(r"(?:^|[`\s$])safeagent-sa ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    }
    assert len(named) > 25
    assert [each for each in sorted(named) if each[1] not in commands] == []


def test_the_page_about_the_command_line_has_every_command():
    table = re.findall(r"^\| (.*?) \|", (DOCS / "command-line.md").read_text(), re.MULTILINE)
    named = {found.split()[0] for cell in table for found in re.findall(r"`([a-z-]+)[^`]*`", cell)}
    assert named == set(get_command(app).commands)


def test_the_page_about_events_has_every_event():
    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "events.md").read_text(), re.MULTILINE)
    classes = [cls for cls in vars(events).values() if inspect.isclass(cls) and issubclass(cls, events.Event)]
    assert named == [cls.__name__ for cls in classes if cls is not events.Event]


def test_the_page_about_the_table_has_every_column_with_its_type():
    rows = re.findall(r"^\| `(\w+)` \| `([^|]*)` \| (yes|no) \|", (DOCS / "table.md").read_text(), re.MULTILINE)
    columns = models.ExecutionRequest.__table__.columns
    dialect = postgresql.dialect()
    types = [str(CreateColumn(column).compile(dialect=dialect)).split(" DEFAULT")[0] for column in columns]
    assert rows == [
        (column.name, text.removesuffix(" NOT NULL").partition(" ")[2], "yes" if column.nullable else "no")
        for column, text in zip(columns, types, strict=True)
    ]


def test_the_page_about_the_table_names_every_status():
    page = (DOCS / "table.md").read_text()
    assert [status for status in safeagent_sa.ExecutionStatus if f"`{status.value}`" not in page] == []


# Not for users to import: the command line, what the package itself exports, and texts of errors.
INSIDE = {"__main__", "cli", "guard", "execution", "integrations", "schema.remedies"}


def public_modules():
    package = ROOT / "safeagent_sa"
    for path in package.rglob("*.py"):
        module = path.relative_to(package).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
        if not {module, module.partition(".")[0]} & (INSIDE - {"integrations"}) and not re.search(r"(^|\.)_", module):
            yield module


def test_the_reference_has_every_public_module_and_name():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    modules = set(re.findall(r"^\.\. automodule:: safeagent_sa\.(\S+)$", pages, re.MULTILINE))
    assert modules == set(public_modules()) - INSIDE
    names = set(re.findall(r"^\.\. auto(?:class|function):: safeagent_sa\.(\w+)$", pages, re.MULTILINE))
    elsewhere = {*vars(errors), *vars(models), "USE_DEFAULT", "AsyncSessionFactory", "SessionFactory", "__version__"}
    assert [name for name in safeagent_sa.__all__ if name not in names | elsewhere] == []


@pytest.mark.parametrize("source", sorted((DOCS / "diagrams").glob("*.mmd")), ids=name_of)
def test_a_diagram_is_drawn_from_its_source(source):
    """Each word of the source is in the picture, which loads nothing: run `make diagrams` after a change."""
    picture = source.with_suffix(".svg").read_text()
    assert re.findall(r"(?:href|src)=\"https?:|@import|@font-face|<script|foreignObject", picture) == []
    shown = set(re.findall(r"\w+", re.sub(r"<style>.*?</style>", "", picture, flags=re.DOTALL)))
    labels = re.findall(r"(?:: | as )(.*)$", source.read_text(), re.MULTILINE)
    assert labels
    assert [
        word for label in labels for word in re.findall(r"\w+", label.replace("<br/>", " ")) if word not in shown
    ] == []


def test_links_to_files_that_are_no_pages_name_the_file():
    text = "[how](../tests/README.md) [changes](../CHANGELOG.md#x) [start](../README.md) [two](../docs/effects.md#y)"
    assert readers.repointed("guarantees", text) == (
        "how (`tests/README.md` in the repository) [changes](changelog.md) [start](index.md) [two](effects.md#y)"
    )
    assert readers.repointed("agents/mcp", "[e](../effects.md) [c](../../CONTRIBUTING.md)") == (
        "[e](../effects.md) [c](../contributing.md)"
    )


def test_programs_find_every_page_of_a_part():
    pages = {path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text() for path in PAGES}
    found = readers.llms_txt(pages)
    assert found.startswith("# safeagent_sa\n\n> An execution guard")
    for part in contents.PARTS[1:]:
        assert [entry for entry in contents.entries(part, pages[part]) if f"]({entry}.md): " not in found] == []
