"""The superlink engine: a temporary deployed federation on this machine's loopback.

Everything is as in a real deployment: certificates, keys, the gateway, Flower's SuperLink, a
SuperNode and a warm runner for each site. Only the homes are a simulation's, with assigned rows of
the data set.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fgvc_core.errors import RunFailed, RunInterrupted
from fgvc_core.files import private_folder
from fgvc_core.proxies import loopback_direct
from fgvc_core.supervision import Supervisor, until_told
from fieldmark.client.deployment.supervisor import site_services
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.following import events_of, raise_outcome
from fieldmark.server.deployment.processes import Coordinator
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import (
    ACTIVE,
    RunRequest,
    read_run_request,
    write_run_request,
)
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.live import LiveView

LOOPBACK = "127.0.0.1"
STEP_S = 0.1
UP_WITHIN_S = 180.0


def run_superlink(run_dir: Path, homes: list[Path]) -> None:
    """Run the two apps on a SuperLink with a SuperNode for each home.

    Raises:
        RunFailed: if the federation does not come up.
        RunInterrupted: if a person stopped it; the last checkpoint is intact.
        FieldmarkError: for every other failure.
    """
    with (
        loopback_direct(),
        TemporaryDirectory(prefix="fieldmark-") as folder,
        Federation(Path(folder)) as federation,
    ):
        federation.start([Site.open(home.resolve()) for home in homes])
        federation.conduct(run_dir.resolve())


class Federation:
    """A coordinator and its sites under one supervisor, for one run.

    Args:
        folder: An empty folder for everything but the run and the sites' homes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coordinator"
        settings = DeploymentSettings(
            name="throw-away",
            hosts=(LOOPBACK,),
            gateway=GatewaySettings(listen=LOOPBACK, port=0),
        )
        init_server(self.folder, settings)
        self.supervisor = Supervisor(self.folder)
        self.coordinator = Coordinator(self.folder, self.supervisor, lambda text: None)

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.coordinator.close()

    def start(self, sites: list[Site]) -> None:
        """Register sites and start everything."""
        allowed = AllowList(self.folder)
        for site in sites:
            allowed.add(site.name, site.public_key)
        self.coordinator.start()
        self.wait_until(lambda: self.coordinator.ready, "The SuperLink did not come up.")
        for site in sites:
            self.start_site(site)

    def start_site(self, site: Site) -> None:
        """Start one site's SuperNode and runner."""
        state = self.folder / "sites" / site.name
        private_folder(state)
        address = f"{LOOPBACK}:{self.coordinator.ports['gateway']}"
        for service in site_services(
            site,
            address,
            self.folder / "ca.pem",
            state,
            self.supervisor.log.info,
            restart_node=lambda: self.supervisor.ask_restart(f"{site.name}.supernode"),
        ):
            self.supervisor.add(replace(service, name=f"{site.name}.{service.name}"))

    def conduct(self, run_dir: Path) -> None:
        """Execute a run and show its progress.

        Raises:
            FieldmarkError: if the run failed, with its exit code.
        """
        link = self.folder / "runs" / run_dir.name
        if not link.exists():
            link.symlink_to(run_dir)
        with _shown(run_dir) as show, until_told() as told:
            write_run_request(run_dir, RunRequest(state="wanted"))
            while read_run_request(run_dir).state in ACTIVE:
                if told and read_run_request(run_dir).state != "stopping":
                    write_run_request(run_dir, read_run_request(run_dir).but(state="stopping"))
                self.coordinator.step()
                show()
                time.sleep(STEP_S)
            show()
        if told:
            raise RunInterrupted(
                "The run was stopped; its last checkpoint is whole.",
                remedy=f"Go on with: fieldmark simulate RECIPE --out {run_dir} --resume",
            )
        raise_outcome(run_dir)

    def wait_until(self, condition: Callable[[], bool], failure: str) -> None:
        """Step the services until a condition holds.

        Raises:
            RunFailed: if it does not hold within ``UP_WITHIN_S``.
        """
        deadline = time.monotonic() + UP_WITHIN_S
        while not condition():
            if time.monotonic() > deadline:
                raise RunFailed(failure, remedy=f"Logs are in {self.folder / 'logs'}.")
            self.coordinator.step()
            time.sleep(STEP_S)


@contextmanager
def _shown(run_dir: Path) -> Iterator[Callable[[], None]]:
    """A function that displays new events of a run."""
    events = events_of(run_dir)
    for event in events:
        if event is None:
            break
    with LiveView(CoordinatorHome.open(run_dir).recipe, Console(stderr=True)) as live:

        def show() -> None:
            for event in events:
                if event is None:
                    return
                live(event)

        yield show
