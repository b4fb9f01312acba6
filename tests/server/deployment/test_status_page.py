"""The status page as its own process serves it, in a headless Chromium."""

import os
from pathlib import Path

import pytest
from browser import CONTRASTS, WIDEST, Browser, needs_chromium
from pages_lab import LONG, REASON, SITES, TOO_FEW, busy_folder, served

from fieldmark.server.run_log.events import EventLog

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture
def folder(tmp_path):
    return busy_folder(tmp_path / "fed")


@pytest.fixture
def page(folder):
    with served(folder) as address:
        yield address


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_phone_and_desk_asks_nobody_else_and_shows_every_sites_state(page, tmp_path, theme):
    with Browser(tmp_path) as browser:
        browser.theme(theme)
        for width in (390, 1280):
            browser.open(page, width)
            assert browser.ask("innerWidth") == width
            assert browser.ask(WIDEST) <= width
            assert browser.ask(CONTRASTS) == []
            text = browser.ask("document.body.innerText")
            keep = os.environ.get("FIELDMARK_TEST_PICTURES")
            if keep:
                browser.picture(Path(keep) / f"status-{width}-{theme}.png")
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
            absent = browser.ask("document.querySelector('#absent').innerText")
            assert REASON in absent
            assert LONG in absent
            past = browser.ask("document.querySelector('[data-part=past]').innerText")
            for said in ("spring", "85.7", "2 of 4 sites contributed", "summer", TOO_FEW[:-1]):
                assert said in past
        assert {a.removeprefix(page) for a in browser.requests} <= {"", "favicon.ico", "data:,"}
        assert browser.said == []


def test_keyboard_and_screen_reader_find_their_way(page, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(page, 390)
        assert browser.tab_order() == ["To what this coordinator says", "Pause"]
        spoken = browser.spoken()
        headings = [name for role, name in spoken if role == "heading"]
        assert headings == ["Field birds", "Run birds", "Waiting and refused",
                            "Last refusals in this run", "Sites", "Past runs", "summer", "spring",
                            "Processes", "Refused at the gateway"]  # fmt: skip
        images = [name for role, name in spoken if role == "image"]
        assert "held-out test 85.9 %, sites' validation 81.9 %" in images[1]
        assert "Mean training loss of run summer over 12 rounds; last: 0.65 nats" in images[0]
        roles = {role for role, _ in spoken}
        assert {"main", "table", "row", "rowheader", "columnheader", "cell", "region"} <= roles


@pytest.mark.slow
def test_it_looks_again_by_itself(page, folder, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(page, 1280)
        assert "round 6 of 20" in browser.ask("document.querySelector('#run').innerText")
        log = EventLog(folder / "runs" / "birds" / "events.jsonl")
        log.emit("round_finished", round=7, seconds=4.0)
        browser.wait_for("document.querySelector('#run').innerText.includes('round 7 of 20')")
        # In the same page: what was loaded is not loaded again.
        assert browser._loaded == 1
