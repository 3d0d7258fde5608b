"""The built site: every link and anchor leads somewhere, nothing comes from elsewhere, and it reads well wide and narrow."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import axe_playwright_python
import pytest
from playwright.sync_api import expect


pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]

LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
DOCS = Path(__file__).resolve().parents[2] / "docs"


class Reader(HTMLParser):
    """Collects the ids of a page, its links, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if attributes.get(LOADS.get(tag, "")):
            self.loads.append(attributes[LOADS[tag]])


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Reader(path.read_text()) for path in site.rglob("*.html")}


def test_every_page_is_built(pages):
    sources = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert sources <= set(pages)


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = [(name, link) for name, page in pages.items() for link in page.links if not leads(site, pages, name, link)]
    assert broken == []


def leads(site, pages, name, link):
    if re.match(r"(https?|mailto):", link):
        return True
    path, anchor = urldefrag(link)
    target = (site / name).parent / unquote(path) if path else site / name
    where = target.resolve().relative_to(site).as_posix()
    if where not in pages:
        return target.is_file()
    return not anchor or unquote(anchor) in pages[where].ids


def test_a_broken_link_is_found(site):
    pages = {"index.html": Reader('<a href="#a"></a><a href="#b"></a><a href="no.html"></a><p id="a">')}
    assert [leads(site, pages, "index.html", link) for link in pages["index.html"].links] == [True, False, False]


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert [
        (name, each) for name, page in pages.items() for each in page.loads if re.match(r"(https?:)?//", each)
    ] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//|@import\s+['\"]?http", style.read_text()) == [], style
    drawn = re.compile(r"(?:href|src)=\"https?:|url\(https?:|@import|@font-face")
    assert [path for path in site.rglob("*.svg") if drawn.search(path.read_text())] == []


def test_programs_can_read_every_page(site, pages):
    listed = re.findall(r"\]\(([^)]+\.md)\)", (site / "llms.txt").read_text())
    assert len(listed) > 40
    assert [name for name in listed if not (site / name).is_file()] == []
    sources = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert [name for name in sources if not (site / name).is_file()] == []
    whole = (site / "llms-full.txt").read_text()
    assert [name for name in sources if f"<!-- {name} -->" not in whole] == []
    assert "made when the site is built" not in whole
    assert "| `ExecutionInProgressError` | Another claim of the request has not ended" in whole


def test_the_reference_is_made_from_docstrings(site):
    guard = (site / "api" / "guard.html").read_text()
    for verb in ("claim", "execute", "run_transaction", "claim_many", "effect", "relay", "resolve", "idempotent"):
        assert f'id="safeagent_sa.ExecutionGuard.{verb}"' in guard
        assert f'id="safeagent_sa.aio.AsyncExecutionGuard.{verb}"' in (site / "api" / "async.html").read_text()
    assert "```" not in guard
    for page in (site / "api").glob("*.html"):
        assert "<dt" in page.read_text() or page.stem == "README", page
    commands = (site / "command-line.html").read_text()
    assert "--older-than" in commands


@pytest.fixture
def opened(browser, address):
    """Open a page; whatever the browser complains about, or asks another server for, fails the test."""
    contexts, wrong = [], []

    def open_page(path="index.html", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url)
        )
        page.goto(f"{address}/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_scrolls_sideways(opened, address, pages, width):
    page = opened(viewport={"width": width, "height": 844})
    wide = {}
    for name in sorted(pages):
        page.goto(f"{address}/{name}")
        if (needed := page.evaluate("document.documentElement.scrollWidth")) > width:
            wide[name] = needed
        assert page.locator("h1").count() >= 1 or name in ("search.html", "genindex.html", "py-modindex.html"), name
    assert wide == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_barriers(opened, address, scheme):
    """What axe calls serious: contrast, names, what a keyboard cannot reach. The lists of definitions are Sphinx's own."""
    page, found = opened(color_scheme=scheme), []
    for name in ("index", "start/first-transaction", "errors", "api/guard", "how-a-claim-works", "agents/README"):
        page.goto(f"{address}/{name}.html")
        page.evaluate(AXE + "; null")
        violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        found += [
            (name, each["id"], each["nodes"][0]["html"])
            for each in violations
            if each["impact"] in ("serious", "critical") and each["id"] != "definition-list"
        ]
    assert found == []


def test_search_finds_a_page(opened, address):
    page = opened("search.html?q=tombstone")
    expect(page.locator("#search-results li").first).to_be_visible(timeout=60_000)
    page.goto(f"{address}/index.html")
    page.get_by_placeholder("Search").first.fill("fault explorer")
    page.keyboard.press("Enter")
    expect(
        page.locator("#search-results").get_by_role("link", name="Prove it: the fault explorer").first
    ).to_be_visible(timeout=60_000)


def test_code_can_be_copied(opened):
    page = opened("start/first-transaction.html", permissions=["clipboard-read", "clipboard-write"])
    page.locator("button.copybtn").first.click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == 'pip install "safeagent_sa[cli]"'


def test_dark_and_light_are_the_readers_choice(opened):
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours["light"] != colours["dark"]
    page = opened(color_scheme="light")
    for _ in range(3):
        page.locator(".theme-toggle-container button:visible, .theme-toggle-header button:visible").first.click()
        if page.evaluate("getComputedStyle(document.body).backgroundColor") == colours["dark"]:
            return
    pytest.fail("no click of the switch makes it dark")


def test_a_reader_finds_each_part_from_the_first_page(opened):
    page = opened()
    for part, first in [
        ("Start here", "Your first guarded transaction"),
        ("How to", "FastAPI"),
        ("Reference", "The API"),
        ("Understand", "How a claim works"),
    ]:
        page.locator(".sidebar-tree").get_by_role("link", name=part, exact=True).click()
        expect(page.locator("h1")).to_contain_text(part)
        page.locator("article").get_by_role("link", name=first, exact=True).click()
        expect(page.locator("h1")).to_contain_text(first)
