"""Reading waiting runs and recording decisions in child processes, for the site's page.

Reading a recipe imports torch, half a gigabyte; the page's process lives as long as the site.
"""

import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_core.errors import FieldmarkError, RunFailed
from fieldmark.client.privacy.approval import waiting_in_words, waiting_runs
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site

WITHIN_S = 300.0
"""Longest time for one child process, in seconds."""
_PYTHON = (sys.executable, "-P", "-m")


class WaitingRuns:
    """:func:`waiting_in_words` by a child process, started again only when its answer may differ.

    Args:
        patience_s: Longest time for which a call waits for it, in seconds.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._asked: _State | None = None
        self._reading: Future[list[dict[str, Any]]] = Future()
        self._known: tuple[_State | None, list[dict[str, Any]]] = (None, [])

    def __call__(self, site: Site) -> list[dict[str, Any]]:
        """The waiting runs of a site.

        While they are read anew the answer is the last one, if the same runs waited under the same
        settings; else nothing.

        Raises:
            RunFailed: if the child process failed; the next call starts another one.
        """
        state = _State.of(site)
        with self._lock:
            if self._asked != state:
                self._asked, self._reading = state, Future()
                arguments = site.home, self._reading
                threading.Thread(target=_read, args=arguments, daemon=True).start()
            reading = self._reading
        try:
            found = reading.result(self._patience_s)
        except TimeoutError:
            before, found = self._known
            return found if before is not None and before.asks_the_same(state) else []
        except RunFailed:
            self._asked = None
            raise
        self._known = state, found
        return found


@dataclass(frozen=True)
class _State:
    """What the answer depends on. Not the ledger's head: each roll call makes it longer."""

    runs: tuple[tuple[str, float], ...]
    settings: str
    charges: str

    @classmethod
    def of(cls, site: Site) -> "_State":
        ledger = Ledger(site.home, site.data_binding, site.name)
        charges = [(plan.run, plan.released, plan.lost) for plan in ledger.plans()]
        runs = tuple(waiting_runs(site))
        return cls(runs, site.settings.model_dump_json(), repr(charges))

    def asks_the_same(self, other: "_State") -> bool:
        return (self.runs, self.settings) == (other.runs, other.settings)


def _read(home: Path, told: "Future[list[dict[str, Any]]]") -> None:
    try:
        command = (*_PYTHON, "fieldmark.client.deployment.deciding", str(home))
        told.set_result(json.loads(_output(command)))
    except Exception as error:
        told.set_exception(error if isinstance(error, RunFailed) else RunFailed(str(error)))


def decide(home: Path, what: str, run: str, digest: str) -> None:
    """Record a decision with the command that a person would type.

    Args:
        home: Home of the site.
        what: ``approve`` or ``decline``.
        run: Id of the run.
        digest: Digest of the recipe that the person has seen, 64 hexadecimal digits.

    Raises:
        RunFailed: with what the command said.
    """
    _output((*_PYTHON, "fieldmark", "site", what, "--digest", digest, "--", str(home), run))


def _output(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WITHIN_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"No answer within {WITHIN_S:g} s; nothing was decided.") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-1000:]
        raise RunFailed(said or f"The command ended with {done.returncode}.")
    return done.stdout


def main() -> None:
    """Print the waiting runs of a home as JSON."""
    try:
        print(json.dumps(waiting_in_words(Site.open(Path(sys.argv[1])))))
    except FieldmarkError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
