"""The status page as its own process serves it, in a headless Chromium."""

import os
from pathlib import Path

import pytest
from browser import WIDEST, Browser, needs_chromium
from pages_lab import REASON, SITES, busy_folder, served

from fieldmark.server.run_log.events import EventLog

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture
def folder(tmp_path):
    return busy_folder(tmp_path / "fed")


@pytest.fixture
def page(folder):
    with served(folder) as address:
        yield address


def test_it_fits_phone_and_desk_asks_nobody_else_and_shows_every_sites_state(page, tmp_path):
    with Browser(tmp_path) as browser:
        for width in (390, 1280):
            browser.open(page, width)
            assert browser.ask("innerWidth") == width
            assert browser.ask(WIDEST) <= width
            text = browser.ask("document.body.innerText")
            keep = os.environ.get("FIELDMARK_TEST_PICTURES")
            if keep:
                browser.picture(Path(keep) / f"status-{width}.png")
            rows = browser.ask(
                "[...document.querySelector('[data-part=sites] table').tBodies[0].rows]"
                ".map(r => [r.cells[0].innerText, r.cells[3].innerText, r.cells[8].innerText])"
            )
            shown = {name.strip(): state for name, state, _ in rows}
            assert {name.strip(): spent for name, _, spent in rows}["lyon"] == "3.25"
            assert set(shown) == {*SITES, "never-seen"}
            for name, state in SITES.items():
                assert state in shown[name]
            assert REASON in shown["turku"]
            for said in ("Field birds", "fl.example.org:8443", "round 6 of 20", "started 2 times",
                         "a key that is not registered", "12345", "gateway"):  # fmt: skip
                assert said in text
        assert {a.removeprefix(page) for a in browser.requests} <= {"", "favicon.ico"}
        assert browser.said == []


@pytest.mark.slow
def test_it_looks_again_by_itself(page, folder, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(page, 1280)
        assert "round 6 of 20" in browser.ask("document.querySelector('#run').innerText")
        log = EventLog(folder / "runs" / "birds" / "events.jsonl")
        log.emit("round_finished", round=7, seconds=4.0)
        before = browser._loaded
        while browser._loaded == before:
            browser._next()
        assert "round 7 of 20" in browser.ask("document.querySelector('#run').innerText")
