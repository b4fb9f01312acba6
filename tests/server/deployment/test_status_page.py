"""The status page as its own process serves it, in a headless Chromium."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import WIDEST, Browser, needs_chromium

from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.supervision import alone, write_json
from server.deployment.allow_list import AllowList
from server.deployment.conduct import Conduct, write_conduct
from server.deployment.processes import free_loopback_port
from server.deployment.provisioning import init_server
from server.deployment.settings import DeploymentSettings
from server.events import EventLog

pytestmark = [pytest.mark.browser, needs_chromium]

REASON = "The update's norm 812.5 is more than 5 times the median 3.17 of the last closed rounds."
LONG = "university-hospital-of-a-very-long-name-department-of-dermatology"
SITES = {"lyon": "replied", "oslo": "training", "turku": "refused", LONG: "away"}


@pytest.fixture
def folder(tmp_path):
    """A coordinator's folder in mid-run, as its processes leave it."""
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(name="Field birds", hosts=("fl.example.org",)))
    for name in (*SITES, "never-seen"):
        AllowList(folder).add(name, public_text(new_key().public_key()))
    run_dir = folder / "runs" / "birds"
    (run_dir / "coordinator").mkdir(parents=True)
    write_conduct(run_dir, Conduct(state="running", tries=2))
    log = EventLog(run_dir / "events.jsonl")
    log.emit("run_started", sites=list(SITES), rounds=20)
    for number, name in enumerate(SITES):
        log.emit("roll_call", site=name, node=number, accepted=True, reason=None)
    log.emit("round_finished", round=6, seconds=4.2)
    log.emit("round_started", round=7, cohort=["lyon", "oslo", "turku"])
    log.emit("site_left", site=LONG, node=9, why="away")
    for name, accepted in (("lyon", True), ("turku", False)):
        log.emit("reply", round=7, kind="train", site=name, accepted=accepted,
                 reason=None if accepted else REASON, bytes_up=3_400_000, bytes_down=9)  # fmt: skip
    (run_dir / "checkpoints").mkdir()
    spent = {"lyon": {"epsilon_total": 3.25}}
    write_json(run_dir / "checkpoints" / "last.json", {"round": 6, "privacy": spent})
    now = time.time()
    counts = {
        "last_seen": {name: now - 7 * n for n, name in enumerate(SITES)},
        "bytes_in": dict.fromkeys(SITES, 123_456_789), "bytes_out": dict.fromkeys(SITES, 98_765),
        "refusals": [["a key that is not registered", 401, 3], ["a path that is not served", 404,
                     12345]],
    }  # fmt: skip
    write_json(folder / "state" / "gateway.json", counts)
    names = ("superlink", "executor", "gateway", "pages")
    services = {n: {"pid": 4000 + i, "restarts": i} for i, n in enumerate(names)}
    write_json(folder / "state" / "services.json", services)
    return folder


@pytest.fixture
def page(folder):
    """The address of the page, served by the process that 'server up' starts."""
    port = free_loopback_port()
    write_json(folder / "state" / "ports.json", {"pages": port, "gateway": 8443})
    command = [sys.executable, "-P", "-m", "server.deployment.pages", str(folder)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        with alone(folder, "The coordinator"):
            yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(20)


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
                "[...document.querySelectorAll('table')[0].tBodies[0].rows]"
                ".map(r => [r.cells[0].innerText, r.cells[3].innerText, r.cells[8].innerText])"
            )
            shown = {name.strip(): state for name, state, _ in rows}
            assert {name.strip(): spent for name, _, spent in rows}["lyon"] == "3.25"
            assert set(shown) == {*SITES, "never-seen"}
            for name, state in SITES.items():
                assert state in shown[name]
            assert REASON in shown["turku"]
            for said in ("Field birds", "fl.example.org:8443", "round 6 of 20", "2 tries",
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
