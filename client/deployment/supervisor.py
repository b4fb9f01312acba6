"""Supervision of a site: its SuperNode, which talks to the coordinator, and its runner."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.files import PRIVATE_UMASK, private_folder, replace_private_json
from fgvc_core.proxies import without_loopback
from fgvc_core.sockets import socket_folder
from fgvc_core.supervision import (
    Service,
    Supervisor,
    alone,
    last_words,
    refuse_second,
    start_detached,
    until_told,
)
from fgvc_core.words import visible
from fieldmark.client.deployment.lines import (
    AWAITS,
    HALF_HANDED_OVER,
    LEFT_BEHIND,
    REFUSED,
    TOO_LARGE,
)
from fieldmark.client.deployment.link import CA, read_link
from fieldmark.client.deployment.notifying import Notifier
from fieldmark.client.deployment.standby import wake_file
from fieldmark.client.privacy.data_claims import Register
from fieldmark.client.site import Site

STEP_S = 0.25
UP_WITHIN_S = 180.0
NODE_WAITS_S = (0.5, 3.0, 10.0, 30.0, 65.0)
"""Waits before each restart of a SuperNode, in seconds. A killed one counts as online until its
heartbeat expires after 60 s, unless the coordinator could be told; the last wait is longer than
that."""
_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_AWAITS = re.compile(rf"run [A-Za-z0-9-]+ {re.escape(AWAITS)}: ")
_REFUSED = re.compile(r"\b401\b|UNAUTHORIZED|Not a registered site")
_DISTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED\] (?:certificate verify failed: )?([^(]+)")


def up(home: Path, say: Callable[[str], None]) -> None:
    """Run a site until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: if the home is incomplete, or is up already.
        PolicyRefusal: if it is a second or an older copy of a home.
    """
    home = home.resolve()
    site, link = Site.open(home), read_link(home)
    check_alone(site, say)
    # Inherited by child processes, for the files that Flower writes into the home.
    os.umask(PRIVATE_UMASK)
    with alone(home, "The site"):
        supervisor = Supervisor(home)
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
                ):
                    supervisor.add(service)
                while not stopping:
                    supervisor.step()
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
    """
    # Only the owner can open the sockets; any account could connect to a loopback port.
    socket = socket_folder(state.absolute() / "sockets") / "supernode"
    secret = _fresh_secret(state / "secret")
    # Notifications of an earlier node: this one has none of its messages.
    wake_file(socket).path.unlink(missing_ok=True)
    node = _Node(site, address, ca, state / "node.json", say, restart_node)
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
        variables,
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


class _Node:
    """Follows a SuperNode through the lines of its log."""

    def __init__(
        self,
        site: Site,
        address: str,
        ca: Path,
        note: Path,
        say: Callable[[str], None],
        restart: Callable[[], None],
    ) -> None:
        self._site, self._address, self._ca = site, address, ca
        self._note, self._say, self._restart = note, say, restart
        self._notifier = Notifier(site.name, lambda: Site.open(site.home).settings.notify, say)
        self.node_id: int | None = None

    def on_line(self, line: str) -> None:
        """Process one line of the SuperNode's log."""
        found = _CONNECTED.search(line)
        if found:
            self.node_id = int(found.group(1))
            self._say(f"connected to {self._address}")
            connected = {"node_id": self.node_id, "connected": round(time.time(), 1)}
            replace_private_json(self._note, connected)
        elif LEFT_BEHIND in line:
            # It has a task for a message that it never received, and would wait for that task's
            # answer before sending any other.
            self._say("the run ended while its message was on its way; the node restarts")
            self._restart()
        elif TOO_LARGE in line:
            self._say(f"the coordinator's server sent too much: {visible(line)}")
        elif _REFUSED.search(line):
            self._say("the coordinator does not accept this site's key; is it still registered?")
        elif found := _DISTRUSTED.search(line):
            self._say(
                f"the coordinator's certificate is refused: {found.group(1).strip()}. Nothing was "
                f"sent to it; fieldmark site check {self._site.home} names its date and issuer"
            )

    def on_runners_line(self, line: str) -> None:
        """Process one line of the runner's log."""
        # Compare the whole line: exception texts in the log may contain any words.
        if line.strip() == HALF_HANDED_OVER:
            self._say("an answer reached the node in part; the node restarts")
            self._restart()
        elif _AWAITS.match(line):
            self._say(visible(line.strip()))
            self._notifier.tell("approval", line.strip())
        elif line.startswith(REFUSED):
            self._notifier.tell("refusal", line.strip())

    def after_death(self, status: int) -> None:
        """Report a death to the coordinator that the node could not report itself."""
        self._note.unlink(missing_ok=True)
        if self.node_id is None or status == 0:
            return
        # Not at the top: Flower takes more memory than this whole process.
        from fieldmark.client.deployment.flower_internals import release_node

        told = release_node(self._address, str(self._ca), self._site.key, self.node_id)
        self._say("the node died; " + ("the coordinator knows" if told else "nobody was told"))


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
    # Run the checks of up() here too, so that their errors reach the caller.
    check_alone(Site.open(home), say)
    read_link(home)
    for part in ("logs", "state"):
        private_folder(home / part)
    refuse_second(home, "site")
    log, node = home / "logs" / "up.log", home / "state" / "node.json"
    said = log.stat().st_size if log.exists() else 0
    node.unlink(missing_ok=True)
    command = (sys.executable, "-P", "-m", "fieldmark", "site", "up", str(home))
    process = start_detached(command, log)
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if node.exists():
            say(f"up, as process {process.pid}; its words are in {log}")
            return
        time.sleep(STEP_S)
    if process.poll() is None:
        process.terminate()
    elif process.returncode == ConfigurationError.exit_code:
        raise ConfigurationError(
            f"The site did not come up: {last_words(log, said)}", remedy=f"Its words are in {log}."
        )
    raise PeerError(
        "The site did not reach its coordinator.",
        why=f"Its last words: {last_words(log, said)} What its node said is in logs/supernode.log.",
        remedy=f"fieldmark site check {shlex.quote(str(home))} goes through what can be wrong.",
    )
