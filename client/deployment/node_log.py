"""What the logs of a site's SuperNode and runner tell its supervisor, and the engineer."""

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from fgvc_core.errors import PeerError
from fgvc_core.files import replace_private_json
from fgvc_core.words import visible
from fieldmark.client.deployment.lines import (
    AWAITS,
    HALF_HANDED_OVER,
    KEY_REFUSED,
    LEFT_BEHIND,
    REFUSED,
    TOO_LARGE,
    TROUBLE,
    UNANSWERED,
)
from fieldmark.client.deployment.notifying import Notifier
from fieldmark.client.site import Site

REFUSED_S = 600.0
"""How long a site goes on trying while the coordinator refuses its key, in seconds. A removed key
never comes back; a clock may."""
BREAK_S = 200.0
"""Longest time between refusals in a row, in seconds; a node waits up to 65 s to start again."""
_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_AWAITS = re.compile(rf"run [A-Za-z0-9-]+ {re.escape(AWAITS)}: ")
_PROXY_REFUSED = re.compile(r"\b407\b.*[Pp]roxy|[Pp]roxy.*\b407\b")
_DISTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED\] (?:certificate verify failed: )?([^(]+)")


class Refused:
    """How long the coordinator has refused a site's key, without a break.

    Args:
        site: The site.
        clock: Seconds.
    """

    def __init__(self, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self._site, self._clock = site, clock
        self._since = self._last = clock() - BREAK_S - 1.0

    def note(self) -> None:
        """It refuses the key now."""
        now = self._clock()
        if now - self._last > BREAK_S:
            # It was content in between, or could not be reached.
            self._since = now
        self._last = now

    def check(self) -> None:
        """End a site that nobody will admit any more.

        Raises:
            PeerError: if the key has been refused for ``REFUSED_S`` without a break.
        """
        if self._last - self._since > REFUSED_S:
            raise PeerError(
                f"The coordinator has refused the key of site '{self._site.name}' for "
                f"{REFUSED_S / 60:g} minutes.",
                why="A key that was removed never comes back, and trying on would tell nobody.",
                remedy=f"fieldmark site check {shlex.quote(str(self._site.home))} says whether it "
                "is this machine's clock; else ask the coordinator, and start the site again.",
            )


class NodeLog:
    """Follows a site's SuperNode and runner through the lines of their logs."""

    def __init__(
        self,
        site: Site,
        address: str,
        ca: Path,
        note: Path,
        say: Callable[[str], None],
        restart: Callable[[], None],
        refused: Refused,
    ) -> None:
        self._site, self._address, self._ca = site, address, ca
        self._note, self._say, self._restart = note, say, restart
        self._notifier = Notifier(site.name, lambda: Site.open(site.home).settings.notify, say)
        self._refused, self._said = refused, ""
        self._trouble = note.with_name(TROUBLE)
        self._trouble.unlink(missing_ok=True)
        self._look = f"fieldmark site check {shlex.quote(str(site.home))}"
        self.node_id: int | None = None

    def _once(self, text: str) -> None:
        """Say something that every restart of the node would repeat, and keep it for the status."""
        if text != self._said:
            self._said = text
            self._say(text)
            replace_private_json(self._trouble, {"text": text})

    def on_line(self, line: str) -> None:
        """Process one line of the SuperNode's log."""
        found = _CONNECTED.search(line)
        if found:
            self._said = ""
            self._trouble.unlink(missing_ok=True)
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
        elif KEY_REFUSED in line:
            self._refused.note()
            self._once(
                "the coordinator refuses this site: its key is not registered (any more), or this "
                f"machine's clock is off; {self._look} says which. It is tried again for "
                f"{REFUSED_S / 60:g} minutes"
            )
        elif _PROXY_REFUSED.search(line):
            self._once(
                "the proxy wants a name and a password: set them in HTTPS_PROXY, and start the "
                f"site again; {self._look} tries it"
            )
        elif found := _DISTRUSTED.search(line):
            self._once(
                f"the coordinator's certificate is refused: {found.group(1).strip()}. Nothing was "
                f"sent to it; {self._look} names its date and issuer"
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
        elif line.startswith(UNANSWERED):
            self._say(visible(line.strip()))
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
