"""Everything that a coordinator runs: SuperLink, executor, gateway, and who keeps them up."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import httpx

from fgvc_core.errors import ConfigurationError, RunFailed
from fgvc_core.supervision import (
    Service,
    Supervisor,
    alone,
    read_json,
    start_detached,
    write_json,
)
from server.deployment.certificates import WARN_DAYS, issue, make_authority
from server.deployment.conductor import Conductor
from server.deployment.flower_internals import ControlApi
from server.deployment.provisioning import check_server
from server.deployment.settings import DeploymentSettings, read_settings

STEP_S = 0.25
UP_WITHIN_S = 90.0
LOOPBACK = "127.0.0.1"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}


def up(folder: Path, say: Callable[[str], None]) -> None:
    """Keep a coordinator up until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: if its folder is not whole, or another keeps it up already.
        PeerError: if its certificate is not valid today.
    """
    folder = folder.resolve()
    left = check_server(folder)
    settings = read_settings(folder)
    with alone(folder, "The coordinator"):
        ports = _choose_ports(folder, settings)
        _make_loopback(folder)
        if left < WARN_DAYS:
            say(f"the certificate expires in {left} days: fieldmark server renew {folder}")
        supervisor = Supervisor(folder)
        stopping: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            stopping.append(number)

        before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            _start(folder, ports, supervisor)
            _keep(folder, settings, ports, supervisor, stopping, say)
        finally:
            supervisor.stop()
            for number, handler in before.items():
                signal.signal(number, handler)


def _keep(
    folder: Path,
    settings: DeploymentSettings,
    ports: dict[str, int],
    supervisor: Supervisor,
    stopping: list[int],
    say: Callable[[str], None],
) -> None:
    ca = (folder / "state" / "loopback" / "ca.pem").read_bytes()
    api = ControlApi(ports["superlink"], ca)

    def tell(text: str) -> None:
        supervisor.log.info("%s", text)
        say(text)

    conductor = Conductor(folder, api, settings.tries, tell)
    link, certificate, ready = None, (folder / "server.pem").stat().st_mtime, False
    while not stopping:
        supervisor.step()
        if supervisor.pid("superlink") != link:
            link = supervisor.pid("superlink")
            conductor.forget()
        if (folder / "server.pem").stat().st_mtime != certificate:
            certificate = (folder / "server.pem").stat().st_mtime
            tell("the certificate was renewed")
            supervisor.restart("gateway")
        try:
            conductor.step()
            if not ready:
                ready = True
                host = settings.hosts[0]
                tell(f"up: sites reach https://{host}:{ports['gateway']}")
                write_json(folder / "state" / "ready.json", {"ready": time.time()})
        except httpx.HTTPError:
            # The SuperLink starts, or starts again.
            pass
        time.sleep(STEP_S)
    tell("stopping")
    api.close()


def _start(folder: Path, ports: dict[str, int], supervisor: Supervisor) -> None:
    own = folder / "state" / "loopback"
    (folder / "state" / "ready.json").unlink(missing_ok=True)
    environment = {**QUIET, "FLWR_HOME": str(folder / "state" / "flwr")}
    binaries = Path(sys.executable).parent
    superlink = (
        str(binaries / "flower-superlink"),
        *("--host", LOOPBACK, "--port", str(ports["superlink"])),
        *("--ssl-ca-certfile", str(own / "ca.pem")),
        *("--ssl-certfile", str(own / "server.pem")),
        *("--ssl-keyfile", str(own / "server.key")),
        *("--isolation", "process", "--enable-supernode-auth"),
        *("--superexec-auth-secret-file", str(folder / "secret")),
        *("--disable-runtime-dependency-installation",),
        *("--database", str(folder / "state" / "superlink.db")),
    )
    supervisor.add(Service("superlink", superlink, environment))
    for name, module in (("executor", "executor"), ("gateway", "serving")):
        command = (sys.executable, "-P", "-m", f"server.deployment.{module}", str(folder))
        supervisor.add(Service(name, command, environment))


def _choose_ports(folder: Path, settings: DeploymentSettings) -> dict[str, int]:
    """Ports of this coordinator; the loopback one stays the same while its folder does."""
    path = folder / "state" / "ports.json"
    before = read_json(path) or {}
    wanted = settings.gateway.port or before.get("gateway", 0)
    ports = {
        "superlink": _free(before.get("superlink", 0), LOOPBACK),
        "gateway": _free(wanted, settings.gateway.listen),
    }
    if settings.gateway.port and ports["gateway"] != settings.gateway.port:
        raise ConfigurationError(
            f"gateway.port = {settings.gateway.port} on {settings.gateway.listen} is taken.",
            remedy="End what uses it, or set another port in server.toml.",
        )
    write_json(path, ports)
    return ports


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
    """A certificate for the SuperLink's own loopback, which no site ever sees."""
    own = folder / "state" / "loopback"
    if (own / "server.pem").exists():
        return
    own.mkdir(mode=0o700, exist_ok=True)
    make_authority(own, "Fieldmark loopback")
    issue(own, "server", [LOOPBACK, "localhost"], days=3650)
    # It has vouched for all that it ever will.
    os.unlink(own / "ca.key")


def up_detached(folder: Path, say: Callable[[str], None]) -> None:
    """Start :func:`up` as a process of its own and come back when it is up.

    Raises:
        FieldmarkError: what it would have raised here; or that it did not come up.
    """
    folder = folder.resolve()
    check_server(folder)
    log = folder / "logs" / "up.log"
    command = (sys.executable, "-P", "-m", "fieldmark", "server", "up", str(folder))
    ready = folder / "state" / "ready.json"
    ready.unlink(missing_ok=True)
    process = start_detached(command, log)
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists():
            say(f"up, as process {process.pid}; its words are in {log}")
            return
        time.sleep(STEP_S)
    if process.poll() is None:
        process.terminate()
    raise RunFailed(
        "The coordinator did not come up.",
        remedy=f"{log} and the other logs beside it say why.",
    )
