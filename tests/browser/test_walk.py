"""The walk of an operator through the dashboard, in a real browser: console errors and violations of its policy are failures."""

import json
import re
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import expect
from support import stage

from safeagent_sa import ExecutionGuard
from safeagent_sa.events import Revealed


pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PAGES = [
    "",
    "in-doubt",
    "outbox",
    "now",
    "requests",
    "requests?q=order%3A1000",
    "health",
    "request?scope=acme&id=order%3A4820",
]


def serious(page):
    """Return what axe finds that keeps people out."""
    page.evaluate(AXE + "; null")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_free_of_errors_and_of_barriers(shop, opened, scheme):
    page = opened(shop.ops, color_scheme=scheme)
    for path in PAGES:
        answer = page.goto(shop.ops + path)
        assert answer.status == 200, path
        assert serious(page) == [], path
        assert page.title().endswith("safeagent_sa")
        assert page.locator("h1").count() == 1, path
        expect(page.get_by_text("could not be read")).to_have_count(0)


def test_a_phone_shows_every_page_without_sideways_scrolling(shop, opened, picture):
    page = opened(shop.ops, viewport={"width": 390, "height": 844}, is_mobile=True, device_scale_factor=2)
    for path in PAGES:
        page.goto(shop.ops + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.goto(shop.ops)
    picture(page, "phone")


def test_pictures_of_the_overview(shop, opened, picture):
    for scheme in ("light", "dark"):
        page = opened(shop.ops, color_scheme=scheme)
        expect(page.locator(".tile")).to_have_count(6)
        expect(page.locator("#locks")).to_contain_text("3 waiting")
        picture(page, f"overview-{scheme}", clip={"x": 0, "y": 0, "width": 1360, "height": 860})


def test_live_parts_are_renewed_but_not_while_a_form_is_in_use_or_the_tab_is_hidden(shop, opened):
    page = opened("about:blank")
    page.clock.install()
    page.goto(shop.ops)
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    latest = page.locator("#latest tbody tr").first
    before = latest.inner_text()

    page.clock.run_for(4100)
    expect(page.locator("body")).to_have_attribute("data-renewed", "1")
    expect(page.locator("#pulse")).to_have_text("renewed every few seconds")
    for renewed in range(2, 30):  # the shop places an order every 0.3 s
        if latest.inner_text() != before:
            break
        page.clock.run_for(4100)
        expect(page.locator("body")).to_have_attribute("data-renewed", str(renewed))
    assert latest.inner_text() != before

    page.keyboard.press("/")
    page.keyboard.type("ord")
    sent.clear()
    page.clock.run_for(9000)
    expect(page.locator("#pulse")).to_have_text("paused while a form is in use")
    page.locator(".find input").fill("")
    page.locator("h1").click(force=True)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(9000)
    expect(page.locator("#pulse")).to_have_text("paused")
    page.get_by_role("button", name="Go on").click()
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(9000)
    assert sent == []
    page.evaluate("Object.defineProperty(document, 'hidden', {value: false, configurable: true})")
    with page.expect_response(shop.ops):
        page.clock.run_for(4100)


def test_a_keyboard_alone_finds_a_request_and_reads_its_times(shop, opened):
    page = opened(shop.ops, timezone_id="Asia/Kolkata")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    page.keyboard.type("order:4820")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/requests\?q="))
    page.get_by_role("link", name="order:4820", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/request\?"))
    expect(page.locator("h1")).to_have_text("order:4820")
    moment = page.locator(".line time").first
    utc = moment.inner_text()
    page.get_by_role("button", name="Times are UTC").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Times are Asia/")).to_be_visible()
    assert moment.inner_text() != utc
    assert utc in moment.get_attribute("title")
    page.reload()
    assert moment.inner_text() != utc


def test_a_verdict_with_evidence_and_the_second_person(shop, opened, picture):
    first = opened(shop.ops + "in-doubt", extra_http_headers={"x-user": "alice@example.org"})
    second = opened(shop.ops + "in-doubt", extra_http_headers={"x-user": "bob@example.org"})
    card = first.locator("article", has_text="order:48213:payout")
    expect(card).to_contain_text("TimeoutError: no answer after 30 s")
    assert card.locator("input:checked").count() == 0
    card.get_by_role("button", name="Record the verdict").click()
    assert first.url.endswith("/in-doubt")  # the browser asks for an answer and for evidence

    card.get_by_label("It happened, once").check()
    card.get_by_label("How do you know?").fill("stripe.com dashboard, po_3Q, 14:02, sent once")
    card.get_by_text("If it happened: the result").click()
    card.get_by_label("Result, as JSON").fill("po_3Q")
    picture(first, "in-doubt", clip={"x": 0, "y": 0, "width": 1360, "height": 640})
    card.get_by_role("button", name="Record the verdict").click()
    expect(first.get_by_role("alert")).to_contain_text("The result is not JSON")
    expect(first.get_by_label("How do you know?")).to_have_value("stripe.com dashboard, po_3Q, 14:02, sent once")
    first.get_by_label("Result, as JSON").fill('{"payout": "po_3Q"}')
    first.get_by_role("button", name="Record the verdict").click()
    expect(first.get_by_role("status").first).to_contain_text("it has happened, recorded for alice@example.org")
    expect(first.get_by_text("order:48213:payout", exact=True)).to_have_count(0)

    card = second.locator("article", has_text="order:48213:payout")
    card.get_by_label("It did not happen").check()
    card.get_by_label("How do you know?").fill("I see nothing")
    card.get_by_role("button", name="Record the verdict").click()
    expect(second.get_by_role("alert")).to_contain_text("order:48213:payout was resolved by alice@example.org at 20")
    expect(second.get_by_role("alert")).to_contain_text("sent once. Your verdict was not recorded.")
    assert serious(second) == []

    first.goto(shop.ops + "request?scope=acme&id=order%3A48213%3Apayout")
    expect(first.locator(".line")).to_contain_text("it has happened, said alice@example.org")
    picture(first, "request", clip={"x": 0, "y": 0, "width": 1360, "height": 620})
    with shop.port.sessions() as session:
        assert ExecutionGuard(scope="acme").get(session, "order:48213:payout").result == {"payout": "po_3Q"}


def test_a_receipt_is_hidden_until_it_is_revealed(shop, opened):
    page = opened(shop.ops + "requests?q=order%3A90000")
    page.locator("td a.id").first.click()
    expect(page.locator("h1")).to_contain_text("order:90000")
    assert "4242" not in page.content()
    assert "placed" not in page.content()
    page.get_by_role("button", name="Show it").click()
    expect(page.locator("#result")).to_contain_text('"card": "****"')
    assert "4242" not in page.content()
    seen = [event for event in shop.heard if isinstance(event, Revealed)]
    assert [event.by for event in seen][-1:] == ["alice@example.org"]


def test_a_hostile_row_is_text_everywhere(shop, opened):
    page = opened(shop.ops + "in-doubt")
    link = page.get_by_role("link", name=stage.HOSTILE, exact=True)
    expect(link).to_have_count(1)
    link.click()
    expect(page.locator("h1")).to_have_text(stage.HOSTILE)
    expect(page.locator(".line")).to_contain_text(f"ValueError: {stage.HOSTILE}")
    assert page.locator("main img, main script").count() == 0
    assert page.title() != "owned"


def test_a_form_of_another_site_is_refused(shop, opened):
    page = opened(shop.other)
    expect(page.locator("main")).to_contain_text(
        "This form was not sent from a page of this dashboard. Nothing was changed."
    )
    assert dict(shop.port.requests())["order:48377:payout"] == "leased"


def test_who_may_only_look_sees_no_form_that_acts(shop, opened):
    page = opened(shop.only)
    for path in PAGES:
        page.goto(shop.only + path)
        assert page.locator("form[method=post]").count() == 0, path
        expect(page.locator(".who")).to_have_text("read only")
        assert "WITH inserted" not in page.content()  # statements of other sessions may have values
    answer = page.goto(shop.only + "no/such/page")
    assert answer.status == 404
    expect(page.locator("main")).to_contain_text("There is no such page.")
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1320px"  # its style was found


def test_each_page_is_json_for_programs(shop, opened):
    page = opened(shop.ops)
    for path in PAGES:
        answer = page.request.get(shop.ops + path, headers={"accept": "application/json"})
        assert json.loads(answer.text())["failed"] == {}, path
