"""Every page that people forward, on phone and desk, by day and by night, by axe-core's rules.

axe-core (https://github.com/dequelabs/axe-core) is not part of the repository: ``make axe`` puts it
into ``build/axe``. Without it, or without a Chromium, its tests are skipped.
"""

import json
from pathlib import Path

import pytest
from browser import CONTRASTS, WIDEST, needs_chromium
from reports_lab import PAGES, addresses, kept

ROOT = Path(__file__).parents[1]
AXE = ROOT / "build" / "axe" / "axe.min.js"
WAYS = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]
ASKED = """axe.run(document, {resultTypes: ["violations", "passes"]}).then(found => JSON.stringify(
{passes: found.passes.map(one => one.id), violations: found.violations.map(one =>
[one.id, one.help, one.nodes.slice(0, 5).map(node => node.html.slice(0, 200))])}))"""

pytestmark = [pytest.mark.slow, pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    with addresses(tmp_path_factory.mktemp("pages")) as found:
        yield found


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "theme"), WAYS)
def test_a_page_fits_and_its_words_stand_out(pages, browser, name, width, theme):
    browser.theme(theme)
    browser.open(pages[name], width)
    if picture := kept(f"{name.replace(' ', '-')}-{width}-{theme}.png"):
        browser.picture(picture)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(CONTRASTS) == []
    if name not in ("evaluation",):
        # A confusion matrix is as wide as it has classes, and scrolls in its card.
        assert browser.ask(WIDEST) <= width


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "theme"), WAYS)
def test_axe_finds_no_violation(pages, browser, name, width, theme):
    if not AXE.is_file():
        pytest.skip("no axe-core in build/axe: make axe")
    browser.theme(theme)
    browser.open(pages[name], width)
    browser.ask(AXE.read_text() + "; 0")
    told = browser.tell("Runtime.evaluate", expression=ASKED, awaitPromise=True, returnByValue=True)
    found = json.loads(told["result"]["value"])
    if table := kept("axe.jsonl"):
        with table.open("a") as out:
            rules = len(found["passes"])
            out.write(json.dumps([name, width, theme, rules, found["violations"]]) + "\n")
    assert len(found["passes"]) > 10
    assert found["violations"] == []


def test_a_page_that_axe_must_complain_of_is_complained_of(browser, tmp_path):
    if not AXE.is_file():
        pytest.skip("no axe-core in build/axe: make axe")
    bad = tmp_path / "bad.html"
    bad.write_text("<html><body><img src='data:,'><p style='color:#ccc'>pale</p></body></html>")
    browser.open(bad.as_uri(), 390)
    browser.ask(AXE.read_text() + "; 0")
    told = browser.tell("Runtime.evaluate", expression=ASKED, awaitPromise=True, returnByValue=True)
    rules = {rule for rule, _, _ in json.loads(told["result"]["value"])["violations"]}
    assert {"image-alt", "color-contrast", "html-has-lang"} <= rules
