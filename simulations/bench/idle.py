"""Memory and processor time of a deployed coordinator and a site between runs.

Memory is the proportional set size (PSS) of all processes together, the commands that started them
included: a page that several processes share counts once, in parts (proc(5), ``smaps_rollup``).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.errors import RunFailed
from fgvc_core.proxies import without_loopback
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.provision import make_home
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.processes import LOOPBACK, free_loopback_port
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

WATCHED_S = 30.0
SETTLED_S = 5.0
"""Time after the start that is not measured, in seconds."""
UP_WITHIN_S = 180.0
STOP_WITHIN_S = 30.0


@dataclass(frozen=True)
class Idle:
    """What the processes of one service take while nothing runs.

    Attributes:
        processes: Number of processes.
        mb: Proportional set size in MB (10^6 bytes).
        cpu_percent: Processor time, in percent of one core.
    """

    processes: int
    mb: float
    cpu_percent: float


def measure_idle(folder: Path) -> tuple[Idle, Idle]:
    """Start a coordinator and one connected site, and measure both.

    Args:
        folder: An empty folder.

    Raises:
        RunFailed: if they do not come up.
    """
    coordinator, home = folder / "coordinator", folder / "home"
    port = free_loopback_port()
    gateway = GatewaySettings(listen=LOOPBACK, port=port)
    init_server(coordinator, DeploymentSettings(name="idle", hosts=(LOOPBACK,), gateway=gateway))
    key = (coordinator / "coordinator.pub").read_text(encoding="utf-8").strip()
    site = make_home(home, name="site-1", coordinator=key, cache=folder)
    ca = (coordinator / "ca.pem").read_text(encoding="utf-8")
    write_link(home, Link(address=f"{LOOPBACK}:{port}"), ca)
    AllowList(coordinator).add(site.name, site.public_key)
    with ExitStack() as stack:
        server = _started(stack, "server", coordinator, coordinator / "state" / "ready.json")
        node = _started(stack, "site", home, home / "state" / "node.json")
        time.sleep(SETTLED_S)
        trees = [processes_of(server), processes_of(node)]
        before = [cpu_seconds(tree) for tree in trees]
        began = time.monotonic()
        time.sleep(WATCHED_S)
        passed = time.monotonic() - began
        used = [cpu_seconds(tree) for tree in trees]
        first, second = (
            Idle(len(tree), pss_bytes(tree) / 1e6, 100 * (after - start) / passed)
            for tree, start, after in zip(trees, before, used, strict=True)
        )
    return first, second


def _started(stack: ExitStack, role: str, folder: Path, sign: Path) -> int:
    """Start ``fieldmark ROLE up FOLDER``, and wait for a file; returns the process id."""
    command = (sys.executable, "-P", "-m", "fieldmark", role, "up", str(folder))
    process = subprocess.Popen(
        command,
        env={**os.environ, **without_loopback(os.environ)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.callback(_end, process)
    deadline = time.monotonic() + UP_WITHIN_S
    while not sign.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RunFailed(f"The {role} did not come up.", remedy=f"See {folder / 'logs'}.")
        time.sleep(0.1)
    return process.pid


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def processes_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(number) for number in listed.read_text(encoding="ascii").split()]
    return found


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of processes together."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
        total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have used so far, in user and kernel mode."""
    total = 0
    for pid in pids:
        # The name, in parentheses, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
