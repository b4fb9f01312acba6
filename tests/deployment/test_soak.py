"""A coordinator for as long as you like among hostile sites: flat memory and disk, deadlines kept.

``make soak`` runs it for MINUTES (30), which it sets as FIELDMARK_SOAK_MINUTES; SEED draws other
lies, and OUT is a folder for every figure that was measured. A real ``server up``, three honest
sites and two registered hostile ones (``soaking_site.py``), run after run.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import soaking_site
from deployment_lab import lay
from soak_measures import HEAD, Figure, coordinator_mb, disk, folder_mb, memory, rows_of

from fgvc_core.files import private_folder
from fgvc_core.recipe import parse_recipe
from fgvc_core.supervision import Service, Supervisor
from fieldmark.client.deployment.supervisor import site_services
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.launching import launch
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import ACTIVE, read_run_request
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

MINUTES = float(os.environ.get("FIELDMARK_SOAK_MINUTES", "0"))
pytestmark = [
    pytest.mark.deployment,
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.skipif(not MINUTES, reason="takes FIELDMARK_SOAK_MINUTES, which is not set"),
]
SEED = int(os.environ.get("FIELDMARK_SOAK_SEED", "0"))
OUT = os.environ.get("FIELDMARK_SOAK_OUT", "")
TOLD_APART = 10
EVERY_S, LATE_S, UP_WITHIN_S = 10.0, 5.0, 180.0
DEADLINE_S, ROUNDS = 20, 6
HONEST, HOSTILE = ("site-1", "site-2", "site-3"), ("site-4", "site-5")
BOUNDS = {"message_mb": 20.0, "slow_s": 4.0, "request_s": 8.0}
RECIPE = f"""
name = "soak"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 200
fieldmarks_test = 24
[partition]
scheme = "iid"
sites = 5
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[wire]
max_update_mb = 8
[federation]
rounds = {ROUNDS}
quorum = 0.5
deadline_s = {DEADLINE_S}
set_aside_after = SET_ASIDE
[evaluate]
pixel_baseline = false
"""


class Soak:
    """A coordinator as processes of its own, honest and hostile sites, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fed"
        gateway = GatewaySettings(listen="127.0.0.1", port=0, **BOUNDS)
        init_server(self.folder, DeploymentSettings(hosts=("127.0.0.1",), gateway=gateway))
        recipe = parse_recipe(RECIPE.replace("SET_ASIDE", "3"))
        self.homes = lay(recipe, folder / "laid", "superlink", list(HONEST + HOSTILE))
        allowed = AllowList(self.folder)
        for home in self.homes.values():
            # The runs are this coordinator's, and not that of the simulation that made the homes.
            shutil.copy(self.folder / "coordinator.pub", home / "coordinator.pub")
            allowed.add(home.name, Site.open(home).public_key)
        self.sites = Supervisor(folder / "sites")
        self.state = folder / "sites"
        self.memory: dict[str, list[float]] = defaultdict(list)
        self.disk: dict[str, list[float]] = defaultdict(list)
        self.rows: list[dict[str, int]] = []
        self.runs: list[Path] = []
        self._due = 0.0

    def __enter__(self) -> "Soak":
        self._stack = ExitStack()
        self._log = self._stack.enter_context((self.folder / "logs" / "up.log").open("ab"))
        command = [sys.executable, "-P", "-m", "fieldmark", "server", "up", str(self.folder)]
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ready = self.folder / "state" / "ready.json"
            self.until(ready.exists, UP_WITHIN_S, "the coordinator is up")
            ports = json.loads((self.folder / "state" / "ports.json").read_text())
            address = f"127.0.0.1:{ports['gateway']}"
            registered = self.folder / "logs" / "supervisor.log"
            self.until(lambda: registered.read_text().count(" is node ") == 5, 60, "all are nodes")
            for name in HONEST:
                self._start(Site.open(self.homes[name]), address)
            for number, name in enumerate(HOSTILE):
                script = (sys.executable, "-P", soaking_site.__file__)
                command = (*script, str(self.homes[name]), address, str(self.folder))
                self.sites.add(Service(name, (*command, str(SEED * 2 + number))))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, site: Site, address: str) -> None:
        state = self.state / site.name
        private_folder(state)
        restart = f"{site.name}.supernode"
        for service in site_services(
            site, address, self.folder / "ca.pem", state, self.sites.log.info,
            restart_node=lambda: self.sites.ask_restart(restart),
        ):  # fmt: skip
            self.sites.add(replace(service, name=f"{site.name}.{service.name}"))

    def __exit__(self, *error: object) -> None:
        self.sites.stop()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stack.close()

    def until(self, condition, within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            assert self.process.poll() is None, (self.folder / "logs" / "up.log").read_text()
            self.step()

    def step(self) -> None:
        self.sites.step()
        if time.monotonic() >= self._due and (self.folder / "state" / "ready.json").exists():
            self._due = time.monotonic() + EVERY_S
            self.measure()
        time.sleep(0.1)

    def measure(self) -> None:
        for name, value in coordinator_mb(self.folder, self.process.pid).items():
            self.memory[name].append(value)
        state = self.folder / "state"
        self.disk["state"].append(folder_mb(state))
        self.disk["logs"].append(folder_mb(self.folder / "logs"))
        # With its write-ahead log: that is what it takes on the disk.
        size = sum(path.stat().st_size for path in state.glob("superlink.db*"))
        self.disk["superlink.db"].append(size / 1e6)
        self.rows.append(rows_of(state / "superlink.db"))

    def run(self, number: int) -> None:
        """One run to its end."""
        recipe = parse_recipe(RECIPE.replace("SET_ASIDE", str(3 * (number % 2))))
        run_dir = launch(self.folder, recipe, f"soak-{number:04d}")
        self.runs.append(run_dir)
        most = 120 + ROUNDS * (DEADLINE_S + 30)
        self.until(lambda: read_run_request(run_dir).state not in ACTIVE, most, "a run is over")

    def events(self, kind: str) -> list[dict]:
        found = []
        for run_dir in self.runs:
            path = run_dir / "events.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            events = [{**json.loads(line), "run": run_dir.name} for line in lines]
            found += [event for event in events if event["event"] == kind]
        return found

    def refused(self) -> list[dict]:
        logs = sorted((self.folder / "logs").glob("gateway.jsonl*"))
        return [json.loads(line) for path in logs for line in path.read_text().splitlines()]

    def told(self) -> Counter[str]:
        """Lie -> how often it was told."""
        paths = [self.homes[name] / "lies.jsonl" for name in HOSTILE]
        lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
        return Counter(json.loads(line)["lie"] for line in lines)

    def figures(self) -> list[Figure]:
        beside = [memory(f"memory of {n}, MB", v) for n, v in sorted(self.memory.items())]
        disks = [disk(f"disk of {n}, MB", v) for n, v in sorted(self.disk.items())]
        return beside + disks


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    with Soak(folder) as running:
        over, number = time.monotonic() + MINUTES * 60, 0
        while time.monotonic() < over:
            number += 1
            running.run(number)
        running.measure()
        assert running.events("round_finished"), [read_run_request(run) for run in running.runs]
        report = _report(running)
        print(report)
        if OUT:
            _keep(running, report, Path(OUT))
        yield running


def _report(running: Soak) -> str:
    seconds = [e["seconds"] for e in running.events("round_finished")]
    replies = running.events("reply")
    refused = Counter(e["reason"] for e in replies if not e["accepted"])
    grown = {
        name: f"{running.rows[len(running.rows) // 2].get(name, 0)} -> {count}"
        for name, count in sorted(running.rows[-1].items())
        if count
    }
    return "\n".join(
        [
            "",
            f"{MINUTES:g} minutes, seed {SEED}: {len(running.runs)} runs, {len(seconds)} rounds, "
            f"{len(running.rows)} measurements",
            HEAD,
            *(figure.row() for figure in running.figures()),
            f"rounds: median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s, "
            f"deadline {DEADLINE_S} s",
            "rows (half-way -> end): " + ", ".join(f"{n} {c}" for n, c in grown.items()),
            "lies: " + ", ".join(f"{lie} {n}" for lie, n in sorted(running.told().items())),
            "replies refused: " + "; ".join(f"{n} x {why}" for why, n in refused.most_common()),
            "at the gateway: "
            + "; ".join(
                f"{n} x {what}"
                for what, n in Counter(r["refused"] for r in running.refused()).most_common(30)
            ),
        ]
    )


def _keep(running: Soak, report: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(report)
    values = {"memory": running.memory, "disk": running.disk, "rows": running.rows}
    values["rounds"] = running.events("round_finished")
    (folder / "figures.json").write_text(json.dumps(values, indent=1))


def test_every_run_ends_with_all_its_rounds(soak):
    assert soak.runs
    for run_dir in soak.runs:
        request = read_run_request(run_dir)
        assert (request.state, request.tries) == ("finished", 1), (run_dir.name, request)
    assert len(soak.events("round_finished")) == ROUNDS * len(soak.runs)


def test_no_round_closes_later_than_five_seconds_after_its_deadline(soak):
    late = [e for e in soak.events("round_finished") if e["seconds"] > DEADLINE_S + LATE_S]
    assert late == []


def test_no_honest_site_is_refused_or_set_aside(soak):
    honest = [e for e in soak.events("reply") if e["site"] in HONEST]
    assert len(honest) >= len(HONEST) * ROUNDS * len(soak.runs)
    assert [e for e in honest if not e["accepted"]] == []
    assert [e for e in soak.events("site_set_aside") if e["site"] in HONEST] == []
    assert [r for r in soak.refused() if r["site"] in HONEST] == []


@pytest.mark.skipif(
    MINUTES < TOLD_APART,
    reason=f"caches fill for some minutes: from growth they are told apart after {TOLD_APART}",
)
def test_neither_memory_nor_disk_grows(soak):
    assert [figure.row() for figure in soak.figures() if figure.grows] == []


def test_hostile_sites_were_as_hostile_as_they_could_be(soak):
    # Few minutes draw few lies; each draws some of either kind.
    told = soak.told()
    assert sum(told.values()) > 2 * ROUNDS * len(soak.runs) / 2
    assert len(told) >= min(20, sum(told.values()) // 4)
    assert [e for e in soak.events("reply") if e["site"] in HOSTILE and not e["accepted"]]
