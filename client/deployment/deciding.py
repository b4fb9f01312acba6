"""Reading waiting runs and recording decisions in child processes, for the site's page.

Reading a recipe imports torch, half a gigabyte; the page's process lives as long as the site.
"""

import json
import subprocess
import sys
import threading
from concurrent.futures import Future
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
        self._state: Any = None
        self._reading: Future[list[dict[str, Any]]] = Future()

    def __call__(self, site: Site) -> list[dict[str, Any]]:
        """The waiting runs of a site; nothing while they are still being read.

        Raises:
            RunFailed: if the child process failed; the next call starts another one.
        """
        head = Ledger(site.home, site.data_binding, site.name).head()
        state = head, waiting_runs(site), site.settings.model_dump_json()
        with self._lock:
            if self._state != state:
                self._state, self._reading = state, Future()
                threading.Thread(target=_read, args=(site.home, self._reading), daemon=True).start()
            reading = self._reading
        try:
            return reading.result(self._patience_s)
        except TimeoutError:
            return []
        except RunFailed:
            self._state = None
            raise


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
