"""A federation of real processes for tests, stepped by hand so that a test can interfere."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fgvc_core.recipe import parse_recipe
from fgvc_core.supervision import Service
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.following import view_of
from fieldmark.server.deployment.run_request import (
    ACTIVE,
    RunRequest,
    read_run_request,
    write_run_request,
)
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.simulate import cache_folder
from fieldmark.simulations.superlink import Federation
from fieldmark.simulations.workers import hired

PATIENCE_S = 900.0


def lay(recipe, out, engine, sites):
    """A run's folder with homes for all sites of a recipe, and an allow-list of some."""
    plan = Simulation(recipe, out, engine)
    setting = deal(recipe, cache_folder())
    with hired(1) as pool:
        prepare(recipe, setting, pool, lambda done, total: None)
    lay_out(plan, setting)
    only(out, sites)
    return {home.name: home.resolve() for home in site_homes(plan, setting)}


def only(out, sites):
    path = out / "coordinator" / "sites.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps({name: listed[name] for name in sites}))


def models_inprocess(text, out, sites):
    """Digest of the model after each round of a run in process."""
    recipe = parse_recipe(text)
    homes = lay(recipe, out, "inprocess", sites)
    with hired(1) as pool:
        run_inprocess(out, [homes[name] for name in sites], pool, 1)
    return [entry["model"] for entry in json.loads((out / "metrics.json").read_text())["history"]]


def children(pid):
    """Processes that a process has started and that are still there."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Lab:
    """A federation on loopback, and one run of it.

    Args:
        folder: For everything.
        text: The recipe.
        sites: Those that are there from the start.
        hostile: Which of them are not what they should be -> the script that stands in for the
            site's processes, and its arguments after home, address and coordinator's folder.
            Its log has the site's name.
    """

    def __init__(
        self,
        folder: Path,
        text: str,
        sites: list[str],
        hostile: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.run_dir = folder / "run"
        self.homes = lay(parse_recipe(text), self.run_dir, "superlink", sites)
        self.federation = Federation(folder)
        self.coordinator = self.federation.coordinator
        self.supervisor = self.federation.supervisor
        self.folder = self.federation.folder
        self.sites = sites
        self.hostile = hostile or {}

    def __enter__(self):
        try:
            honest = [name for name in self.sites if name not in self.hostile]
            self.federation.start([Site.open(self.homes[name]) for name in honest])
            self._start_hostile()
            (self.folder / "runs" / "run").symlink_to(self.run_dir)
            write_run_request(self.run_dir, RunRequest(state="wanted"))
        except BaseException:
            self.federation.__exit__()
            raise
        return self

    def _start_hostile(self):
        for name in self.hostile:
            AllowList(self.folder).add(name, Site.open(self.homes[name]).public_key)
        nodes = len(self.sites)
        if self.hostile:
            self.until(
                lambda: self.lines("supervisor").count(" is node ") == nodes, "all are nodes"
            )
        for name, (script, *arguments) in self.hostile.items():
            address = f"127.0.0.1:{self.coordinator.ports['gateway']}"
            # -P: beside the script lie folders named as packages.
            command = (sys.executable, "-P", script, str(self.homes[name]), address)
            self.supervisor.add(Service(name, (*command, str(self.folder), *arguments)))

    def _all_registered(self):
        return self.lines("supervisor").count(" is node ") == len(self.sites)

    def __exit__(self, *error):
        keep = os.environ.get("FIELDMARK_TEST_LOGS")
        if keep:
            shutil.copytree(self.folder / "logs", Path(keep) / str(time.time_ns()))
            shutil.copy(self.run_dir / "events.jsonl", Path(keep))
        self.federation.__exit__()

    def until(self, condition, what):
        """Step until a condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            self.coordinator.step()
            time.sleep(0.05)
        return found

    def until_round(self, number, *, begun=False):
        """Step until a round is done, or has begun."""
        kind = "round_started" if begun else "round_finished"
        self.until(lambda: any(e["round"] >= number for e in self.events(kind)), f"{kind} {number}")

    def until_over(self):
        self.until(lambda: read_run_request(self.run_dir).state not in ACTIVE, "the run is over")
        return read_run_request(self.run_dir)

    def events(self, kind):
        path = self.run_dir / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    def models(self):
        """Digest of the model after each round."""
        return {e["round"]: e["model"] for e in self.events("round_finished")}

    def view(self):
        return view_of(self.run_dir)

    def pid(self, name):
        return self.supervisor.pid(name)

    def child_of(self, name):
        """Step until a service has a child process; returns its id."""

        def find():
            parent = self.pid(name)
            listed = [] if parent is None else children(parent)
            return listed[0] if listed else None

        return self.until(find, f"{name} has a child")

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)

    def kill_site(self, site):
        """End every process of a site with SIGKILL; nothing starts it again."""
        for name in (f"{site}.runner", f"{site}.supernode"):
            # The supervisor would start it again.
            process = self.supervisor._running.pop(name).process
            if process is None:
                continue
            tree = [process.pid]
            for each in tree:
                with suppress(FileNotFoundError, ProcessLookupError):
                    tree += children(each)
            for each in tree:
                with suppress(ProcessLookupError):
                    self.kill(each)
            process.wait()

    @contextmanager
    def held(self, name, *, tree=False):
        """A service stands still meanwhile, as on a machine that has hung.

        What it works on goes on in its child, unless the whole tree is held: no longer than
        30 s then, after which its node gives the work up.
        """
        pid = self.pid(name)
        stopped = [pid, *(children(pid) if tree else ())]
        for each in stopped:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        try:
            yield
        finally:
            for each in stopped:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)

    @contextmanager
    def busy(self, site):
        """The process that answers a site's message stands still: no round ends meanwhile.

        Its runner says all the time that the message is worked on, so nothing lapses.
        """
        child = self.child_of(f"{site}.runner")
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)

    @contextmanager
    def at_work(self, round_):
        """Every site has its request of a round, and stands still: nothing is on its way."""
        with ExitStack() as held:
            for site in self.sites:
                held.enter_context(self.held(f"{site}.runner", tree=True))
            for site in self.sites:
                self.until(lambda: self.has_received(site, round_), f"{site} is asked")  # noqa: B023
            yield

    def has_received(self, site, round_):
        """Whether a site's node has a round's request, whole."""
        _, found, rest = self.lines(f"{site}.supernode").partition(f"ROUND {round_}]")
        return bool(found) and "Received successfully" in rest

    def lines(self, name):
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""
