"""Supervision of a site: its SuperNode, which talks to the coordinator, and its runner."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.files import PRIVATE_UMASK, private_folder
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
from fgvc_core.words import visible
from fieldmark.client.deployment.home_modes import check_modes
from fieldmark.client.deployment.link import CA, read_link
from fieldmark.client.deployment.node_log import NodeLog, Refused
from fieldmark.client.deployment.standby import wake_file
from fieldmark.client.privacy.data_claims import Register
from fieldmark.client.site import Site

NODE_WAITS_S = (0.5, 3.0, 10.0, 30.0, 65.0)
"""Waits before each restart of a SuperNode, in seconds. A killed one counts as online until its
heartbeat expires after 60 s, unless the coordinator could be told; the last wait is longer than
that."""


def up(home: Path, say: Callable[[str], None]) -> None:
    """Run a site until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: if the home is incomplete, is up already, or is open to others.
        PolicyRefusal: if it is a second or an older copy of a home.
        PeerError: if the coordinator has refused the site's key for ``node_log.REFUSED_S``.
    """
    home = home.resolve()
    site, link = Site.open(home), read_link(home)
    check_modes(home)
    check_alone(site, say)
    # Inherited by child processes, for the files that Flower writes into the home.
    os.umask(PRIVATE_UMASK)
    with alone(home, "The site"):
        supervisor = Supervisor(home)
        refused = Refused(site)
        try:
            with until_told() as stopping:
                say(f"site {site.name}: connecting to {link.address}")
                for service in site_services(
                    site,
                    link.address,
                    home / CA,
                    home / "state",
                    say,
                    restart_node=lambda: supervisor.ask_restart("supernode"),
                    refused=refused,
                ):
                    supervisor.add(service)
                if site.settings.page.port is not None:
                    supervisor.add(page_service(site, say))
                while not stopping:
                    supervisor.step()
                    refused.check()
                    time.sleep(STEP_S)
                say("stopping")
        finally:
            supervisor.stop()


def check_alone(site: Site, say: Callable[[str], None]) -> None:
    """Refuse a home that is a second or an older copy of another home of this user.

    Resamples the data's content, which no message may trigger.

    Raises:
        PolicyRefusal: naming the other home, or the remedy.
    """
    if not Register().path.exists():
        # No register yet; the first run with differential privacy creates it.
        return
    from fieldmark.client.privacy.admission import Admission
    from fieldmark.client.privacy.ledger import Ledger

    try:
        Admission(site, Ledger(site.home, site.data_binding, site.name)).claim_data(afresh=True)
    except ConfigurationError as error:
        # Not fatal: only private runs need the register, and their roll call is refused.
        say(f"{error.what} {error.remedy}")


def site_services(
    site: Site,
    address: str,
    ca: Path,
    state: Path,
    say: Callable[[str], None],
    restart_node: Callable[[], None],
    refused: Refused | None = None,
) -> list[Service]:
    """SuperNode and runner of a site, as supervised services.

    Args:
        site: The site.
        address: host:port of the coordinator's gateway.
        ca: Path of the only CA that may certify the gateway.
        state: Folder for the socket, the secret, and Flower's own files.
        say: Called with status messages.
        restart_node: Restarts the SuperNode gracefully; may be called from any thread. When the
            runner dies its message is lost, and a node that disconnects reports this at once, not
            after a minute without heartbeat.
        refused: Notes since when the coordinator refuses the site's key.
    """
    # Only the owner can open the sockets; any account could connect to a loopback port.
    socket = socket_folder(state.absolute() / "sockets") / "supernode"
    secret = _fresh_secret(state / "secret")
    # Notifications of an earlier node: this one has none of its messages.
    wake_file(socket).path.unlink(missing_ok=True)
    node = NodeLog(
        site, address, ca, state / "node.json", say, restart_node, refused or Refused(site)
    )
    variables = environment(state / "flwr")
    # -P: files in the working directory must not shadow installed modules.
    module = (sys.executable, "-P", "-m")
    command = (
        *(*module, "fieldmark.client.deployment.supernode", str(socket)),
        str(int(site.settings.limits.message_mb * 1e6)),
        *("--superlink", address, "--root-certificates", str(ca)),
        *("--auth-supernode-private-key", str(site.home / "key")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
    )
    supernode = Service(
        "supernode",
        command,
        variables | HEAP_ENVIRONMENT,
        waits=NODE_WAITS_S,
        after_death=node.after_death,
        on_line=node.on_line,
    )
    runner = (
        *module,
        "fieldmark.client.deployment.standby",
        str(site.home),
        str(socket),
        str(secret),
    )
    return [
        supernode,
        Service(
            "runner",
            runner,
            variables,
            after_death=lambda status: restart_node(),
            on_line=node.on_runners_line,
        ),
    ]


def page_service(site: Site, say: Callable[[str], None]) -> Service:
    """The site's own page, as a supervised service; only where ``page.port`` is set."""
    port = str(site.settings.page.port)
    command = (sys.executable, "-P", "-m", "fieldmark.client.deployment.page", str(site.home), port)
    # Its two lines: where it is, or that its port is taken.
    return Service("page", command, on_line=lambda line: say(visible(line)))


def environment(flower_home: Path) -> dict[str, str]:
    """Environment variables of a site's processes."""
    return {
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Without this, Flower would send its loopback calls through the proxy.
        **without_loopback(os.environ),
    }


def _fresh_secret(path: Path) -> Path:
    """Write a new secret that SuperNode and runner share while both are up."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(32).hex().encode())
    return path


def up_detached(home: Path, say: Callable[[str], None]) -> None:
    """Start :func:`up` in a background process and return once it is connected.

    Raises:
        FieldmarkError: as :func:`up`, or if it did not connect.
    """
    home = home.resolve()
    # Run the checks of up() here too, in its order, so that their errors reach the caller. A folder
    # that is no home is named as that before a key is missed in it.
    site, _ = Site.open(home), read_link(home)
    check_modes(home)
    check_alone(site, say)
    for part in ("logs", "state"):
        private_folder(home / part)
    ready = home / "state" / "node.json"
    words = start_up("site", "The site", home, ready, say, waits="not connected yet")
    if words is None:
        return
    raise PeerError(
        "The site did not reach its coordinator.",
        why=f"Its last words: {words} What its node said is in logs/supernode.log.",
        remedy=f"fieldmark site check {shlex.quote(str(home))} goes through what can be wrong.",
    )
