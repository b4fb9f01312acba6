"""The site's page as its own process serves it, in a headless Chromium."""

import os
from pathlib import Path

import pytest
from browser import CONTRASTS, WIDEST, needs_chromium
from site_page_lab import served_site

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.unused import Unused
from fieldmark.client.announced import remember
from fieldmark.client.deployment.page_token import read_token
from fieldmark.client.left_out import keep_left_out
from fieldmark.client.privacy.report import write_report
from fieldmark.client.site import Site

from ..protected_sites import announce, answer, ledger_of, make_site, request, sums, with_policy

pytestmark = [pytest.mark.browser, needs_chromium]

SUMS = sums()
LONG = "policy.tensors: /a/name/without/any/space/" + "x" * 140
FIELD = "Token of this home, for your decision on sums (fieldmark site page says where it is)"
KEYS = [
    "To what this site says", FIELD, "Approve sums", "Decline sums",
    "Token of this home, to see how many and which were left out", "Show", "The report",
    "the same as JSON", "Pause",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with everything on its page."""
    site = make_site(tmp_path_factory.mktemp("site"), epsilon_cap=8.0)
    announce(site, SUMS, "run-1")
    for phase in ("centre", "class-sums"):
        answer(site, SUMS, request(SUMS, "release", "run-1", phase=phase))
    write_report(site.home, site.home / "privacy-report.html")
    site = with_policy(site, approval="each-run", epsilon_cap=8.0)
    values = {"recipe": SUMS.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    remember(site.home, request(SUMS, "roll_call", "run-7", 0, **values), lambda run: False)
    refusal = {"run": "run-6", "round": 2, "what": "train", "reason": LONG}
    ledger_of(site).note("refused", refusal)
    left_out = LeftOut()
    left_out.add("that cannot be read", "Mrs-Canary.png")
    keep_left_out(site, "sums", left_out, Unused())
    return site.home


@pytest.fixture(scope="module")
def address(home):
    with served_site(home) as found:
        yield found


def opened(browser, address, width=390):
    """Open the page, and wait until it has read what waits."""
    browser.open(address, width)
    while not browser.ask("!!document.querySelector('form[action=\"/decide\"]')"):
        browser.open(address, width)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read_on_phone_and_desk_by_day_and_night(browser, address, width, theme):
    browser.theme(theme)
    opened(browser, address, width)
    keep = os.environ.get("FIELDMARK_TEST_PICTURES")
    if keep:
        browser.picture(Path(keep) / f"site-{width}-{theme}.png")
    assert browser.ask(WIDEST) <= width
    assert browser.ask(CONTRASTS) == []
    text = browser.ask("document.body.innerText")
    for said in ("site-1", "the total would be", "left 5.75", LONG, "that cannot be read"):
        assert said in text
    assert "Mrs-Canary" not in text
    assert {a for a in browser.requests if not a.startswith(address)} == set()
    # Chromium's advice on forms is no error.
    errors = [e for e in browser.said if e.get("entry", {}).get("level") != "verbose"]
    assert errors == []


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(browser, address):
    opened(browser, address)
    assert browser.tab_order() == KEYS


def test_a_screen_reader_is_told_what_everything_is(browser, address):
    opened(browser, address)
    spoken = browser.spoken()
    assert all(name for role, name in spoken if role in
               ("button", "textbox", "link", "image", "heading", "region"))  # fmt: skip
    headings = [name for role, name in spoken if role == "heading"]
    assert headings[:3] == ["site-1", "Waits for your decision", "sums"]
    assert ("textbox", FIELD) in spoken
    assert any(role == "image" and "epsilon 2.25" in name for role, name in spoken)
    # A table that has folded into lines is still a table.
    roles = {role for role, _ in spoken}
    assert {"main", "table", "row", "rowheader", "columnheader", "cell", "region"} <= roles


def test_it_looks_again_without_taking_away_what_a_person_types(browser, address, home):
    opened(browser, address)
    browser.ask("document.querySelector('#token-1').value = 'half a tok'")
    text = browser.ask("document.querySelector('[data-part=report]').innerText")
    (home / "privacy-report.html").rename(home / "away.html")
    try:
        browser.wait_for("!document.querySelector('[data-part=report] a')")
    finally:
        (home / "away.html").rename(home / "privacy-report.html")
    assert "as of" in text
    assert browser.ask("document.querySelector('#token-1').value") == "half a tok"


def test_a_person_approves_with_the_token_and_not_without(browser, address, home):
    opened(browser, address)
    for token, waits in (("wrong", True), (read_token(home), False)):
        before = browser._loaded
        browser.ask(f"document.querySelector('#token-1').value = {token!r}")
        browser.ask("document.querySelector('#token-1').focus()")
        browser.press("Tab", 9)
        browser.press("Enter", 13)
        while browser._loaded == before:
            browser._next()
        alert = browser.ask("document.querySelector('[role=alert]')?.innerText")
        assert (alert is not None) == waits
        assert ledger_of(Site.open(home)).is_approved("run-7", SUMS.digest) != waits
    assert "approved" in browser.ask("document.querySelector('[data-part=waits]').innerText")
    assert browser.ask("document.cookie") == ""
