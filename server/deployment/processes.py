"""The processes of a coordinator, supervised: SuperLink, executor, gateway, status page."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from fgvc_core.errors import ConfigurationError, RunFailed
from fgvc_core.files import PRIVATE_UMASK, private_folder, read_json, replace_private_json
from fgvc_core.heap import HEAP_ENVIRONMENT
from fgvc_core.proxies import without_loopback
from fgvc_core.sockets import socket_folder
from fgvc_core.supervision import (
    STEP_S,
    Service,
    Supervisor,
    alone,
    start_up,
    until_told,
)
from fieldmark.server.deployment.certificates import WARN_DAYS, issue, make_authority
from fieldmark.server.deployment.conductor import Conductor
from fieldmark.server.deployment.flower_internals import ControlApi
from fieldmark.server.deployment.provisioning import check_server
from fieldmark.server.deployment.settings import DeploymentSettings, read_settings
from fieldmark.server.deployment.sockets import sockets, superlink_address
from fieldmark.server.deployment.storage import DATABASE, check_revision, compact

CONDUCT_S = 0.75
LOOPBACK = "127.0.0.1"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    # Each of these would open a port to every account of the machine.
    "FLWR_INTERNAL_GRPC_CONTROL_API": "0",
    "FLWR_INTERNAL_GRPC_FLEET_API": "0",
}


class Coordinator:
    """A coordinator's services under a supervisor, and the conductor that uses them.

    Args:
        folder: The coordinator's.
        supervisor: Keeps the services up.
        say: Prints a message.

    Attributes:
        ports: Of the gateway, and of the pages on loopback.
        superlink: Address of the SuperLink, ``unix:PATH``.
        ready: Whether the SuperLink has answered.
    """

    def __init__(self, folder: Path, supervisor: Supervisor, say: Callable[[str], None]) -> None:
        self._folder, self._supervisor, self._say = folder, supervisor, say
        self._settings = read_settings(folder)
        self.ports = _choose_ports(folder, self._settings)
        self.ready = False
        _make_loopback(folder)
        ca = (folder / "state" / "loopback" / "ca.pem").read_bytes()
        socket_folder(sockets(folder))
        self.superlink = superlink_address(folder)
        self._api = ControlApi(self.superlink, ca)
        self._conductor = Conductor(folder, self._api, self._settings.tries, self._tell)
        self._link: int | None = None
        self._certificate = (folder / "server.pem").stat().st_mtime
        self._due = 0.0

    def start(self, executor: tuple[str, ...] = ()) -> None:
        """Start SuperLink, executor and gateway.

        Args:
            executor: Another executor's command, for benchmarks.
        """
        _start(self._folder, self._supervisor, executor)

    def step(self) -> None:
        """Check the services once and, less often, the run."""
        self._supervisor.step()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + CONDUCT_S
        if self._supervisor.pid("superlink") != self._link:
            self._link = self._supervisor.pid("superlink")
            self._conductor.forget()
        if (self._folder / "server.pem").stat().st_mtime != self._certificate:
            self._certificate = (self._folder / "server.pem").stat().st_mtime
            self._tell("the certificate was renewed")
            self._supervisor.restart("gateway")
        try:
            self._conductor.step()
        except httpx.HTTPError:
            # The SuperLink is starting or restarting.
            return
        if not self.ready:
            self.ready = True
            self._tell(f"up: sites reach {self._settings.hosts[0]}:{self.ports['gateway']}")
            replace_private_json(self._folder / "state" / "ready.json", {"ready": time.time()})

    def close(self) -> None:
        """Close the connection to the SuperLink."""
        self._api.close()

    def _tell(self, text: str) -> None:
        self._supervisor.log.info("%s", text)
        self._say(text)


def up(folder: Path, say: Callable[[str], None]) -> None:
    """Keep a coordinator up until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: if its folder is incomplete, or the coordinator is already up.
        PeerError: if its certificate is not valid today.
        DataError: if the SuperLink's database is of a later version.
    """
    folder = folder.resolve()
    left = check_server(folder)
    check_revision(folder / "state" / DATABASE)
    # Applies to files of Flower and trackers, in this process and its children.
    os.umask(PRIVATE_UMASK)
    with alone(folder, "The coordinator"):
        if left < WARN_DAYS:
            say(f"the certificate expires in {left} days: fieldmark server renew {folder}")
        # For good: this process is the coordinator's own.
        os.environ.update(without_loopback(os.environ))
        supervisor = Supervisor(folder)
        coordinator = Coordinator(folder, supervisor, say)
        try:
            with until_told() as stopping:
                coordinator.start()
                while not stopping:
                    coordinator.step()
                    time.sleep(STEP_S)
                say("stopping")
        finally:
            supervisor.stop()
            coordinator.close()


def _start(folder: Path, supervisor: Supervisor, executor: tuple[str, ...]) -> None:
    tls = folder / "state" / "loopback"
    (folder / "state" / "ready.json").unlink(missing_ok=True)
    environment = {**QUIET, "FLWR_HOME": str(folder / "state" / "flwr")}
    # -P keeps the working directory off sys.path.
    python = (sys.executable, "-P", "-m")
    database = folder / "state" / DATABASE
    superlink = (
        *(*python, "fieldmark.server.deployment.superlink", str(folder)),
        *("--ssl-ca-certfile", str(tls / "ca.pem")),
        *("--ssl-certfile", str(tls / "server.pem")),
        *("--ssl-keyfile", str(tls / "server.key")),
        *("--isolation", "process", "--enable-supernode-auth"),
        *("--superexec-auth-secret-file", str(folder / "secret")),
        *("--disable-runtime-dependency-installation",),
        *("--database", str(database)),
    )
    # No process has it open now, so space left by a killed run can be freed, too.
    compact(database)
    supervisor.add(Service("superlink", superlink, environment | HEAP_ENVIRONMENT))
    own = executor or (*python, "fieldmark.server.deployment.standby", str(folder))
    supervisor.add(Service("executor", own, environment))
    for name, module in (("gateway", "serving"), ("pages", "pages")):
        command = (*python, f"fieldmark.server.deployment.{module}", str(folder))
        supervisor.add(Service(name, command, environment | HEAP_ENVIRONMENT))


def _choose_ports(folder: Path, settings: DeploymentSettings) -> dict[str, int]:
    """Ports of this coordinator; they stay the same across restarts."""
    path = folder / "state" / "ports.json"
    before = read_json(path) or {}
    wanted = settings.gateway.port or before.get("gateway", 0)
    ports = {
        "gateway": _free(wanted, settings.gateway.listen),
        "pages": _free(settings.status_port or before.get("pages", 0), LOOPBACK),
    }
    if settings.gateway.port and ports["gateway"] != settings.gateway.port:
        raise ConfigurationError(
            f"gateway.port = {settings.gateway.port} on {settings.gateway.listen} is taken.",
            remedy="End what uses it, or set another port in server.toml.",
        )
    replace_private_json(path, ports)
    return ports


def free_loopback_port() -> int:
    """A free port on loopback."""
    return _free(0, LOOPBACK)


def _free(wanted: int, address: str) -> int:
    """The wanted port if it is free, else any."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (wanted, 0):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return wanted


def _make_loopback(folder: Path) -> None:
    """Create a certificate for the SuperLink, used on this machine only.

    Flower checks nodes' keys only if it serves TLS, even on a socket.
    """
    own = folder / "state" / "loopback"
    if (own / "server.pem").exists():
        return
    private_folder(own)
    make_authority(own, "Fieldmark loopback")
    issue(own, "server", [LOOPBACK, "localhost"], days=3650)
    # The CA key is not needed again.
    os.unlink(own / "ca.key")


def up_detached(folder: Path, say: Callable[[str], None]) -> None:
    """Run :func:`up` in a new process and return when it is up.

    Raises:
        FieldmarkError: as :func:`up`, or if it does not come up in time.
    """
    folder = folder.resolve()
    check_server(folder)
    check_revision(folder / "state" / DATABASE)
    words = start_up("server", "The coordinator", folder, folder / "state" / "ready.json", say)
    if words is None:
        return
    raise RunFailed(
        "The coordinator did not come up.",
        why=f"Its last words: {words}",
        remedy=f"{folder / 'logs' / 'up.log'} and the other logs beside it say why.",
    )
