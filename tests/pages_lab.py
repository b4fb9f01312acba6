"""A coordinator's folder in mid-run, and the process that shows it."""

import contextlib
import socket
import subprocess
import sys
import time

from fgvc_core.files import replace_private_json
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.supervision import alone
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.processes import free_loopback_port
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import RunRequest, write_run_request
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.run_log.events import EventLog

REASON = "The update's norm 812.5 is more than 5 times the median 3.17 of the last closed rounds."
LONG = "university-hospital-of-a-very-long-name-department-of-dermatology"
TOO_FEW = "2 of the 4 sites that were asked take part, and a round needs 3."
SITES = {"lyon": "replied", "oslo": "training", "turku": "refused", LONG: "away"}


def busy_folder(folder):
    """A coordinator's folder in mid-run, as its processes leave it."""
    init_server(folder, DeploymentSettings(name="Field birds", hosts=("fl.example.org",)))
    for name in (*SITES, "never-seen"):
        AllowList(folder).add(name, public_text(new_key().public_key()))
    past_run(folder, "spring", "finished", tested=True)
    past_run(folder, "summer", "failed", why=f"RunFailed: {TOO_FEW}")
    run_dir = folder / "runs" / "birds"
    (run_dir / "coordinator").mkdir(parents=True)
    write_run_request(run_dir, RunRequest(state="running", tries=2))
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
    replace_private_json(run_dir / "checkpoints" / "last.json", {"round": 6, "privacy": spent})
    now = time.time()
    counts = {
        "last_seen": {name: now - 7 * n for n, name in enumerate(SITES)},
        "bytes_in": dict.fromkeys(SITES, 123_456_789), "bytes_out": dict.fromkeys(SITES, 98_765),
        "refusals": [["a key that is not registered", 401, 3], ["a path that is not served", 404,
                     12345]],
    }  # fmt: skip
    replace_private_json(folder / "state" / "gateway.json", counts)
    names = ("superlink", "executor", "gateway", "pages")
    services = {n: {"pid": 4000 + i, "restarts": i} for i, n in enumerate(names)}
    replace_private_json(folder / "state" / "services.json", services)
    return folder


def past_run(folder, name, state, rounds=12, why="", *, tested=False):
    """A run that has ended, with the scores of its rounds or their losses alone."""
    run_dir = folder / "runs" / name
    (run_dir / "coordinator").mkdir(parents=True)
    write_run_request(run_dir, RunRequest(state=state, tries=1, why=why))
    log = EventLog(run_dir / "events.jsonl")
    log.emit("run_started", sites=list(SITES), rounds=20)
    for number in range(1, rounds + 1):
        top1 = 0.9 - 0.6 * 0.8**number
        for site in ("lyon", "oslo"):
            log.emit("reply", round=number, kind="train", site=site, accepted=True, reason=None,
                     bytes_up=3_400_000, bytes_down=9)  # fmt: skip
        log.emit("round_finished", round=number, seconds=4.2, loss=2.3 * 0.9**number,
                 top1=top1 if tested else None)  # fmt: skip
        if tested:
            log.emit("scored", round=number, val_top1=top1 - 0.04, val_loss=1.0)
    if tested:
        absent = {LONG: "away: it did not answer the roll call"}
        replace_private_json(run_dir / "metrics.json", {"top1": 0.857, "not_contributed": absent})


@contextlib.contextmanager
def served(folder):
    """The address of the page, served by the process that 'server up' starts."""
    port = free_loopback_port()
    replace_private_json(folder / "state" / "ports.json", {"pages": port, "gateway": 8443})
    command = [sys.executable, "-P", "-m", "fieldmark.server.deployment.pages", str(folder)]
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
