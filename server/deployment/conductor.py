"""The conductor: starts the Flower run of a Fieldmark run, and another one if that dies.

A Fieldmark run is a folder; several Flower runs may execute it. A run that ended for a reason (a
policy, a missing quorum) is not retried; one that crashed is resumed from its checkpoint.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from fgvc_core import __version__
from fgvc_core.errors import DataError
from fgvc_core.files import replace_private_json
from fgvc_core.protocol.announcement import Announcement, seal_announcement
from fgvc_core.protocol.bundle import make_bundle
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import read_private
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.flower_internals import ControlApi
from fieldmark.server.deployment.run_request import (
    RunRequest,
    active_run,
    read_run_request,
    rounds_done,
    write_run_request,
)
from fieldmark.server.deployment.storage import DATABASE, compact
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.ledger_memory import NODES, link_memory

STOP_WITHIN_S = 30.0
_DIED = ("died:", "RunInterrupted")


class Conductor:
    """Executes requested runs, and keeps the SuperLink's list of keys current.

    Args:
        folder: The coordinator's.
        api: The SuperLink's Control API.
        tries: How often a run may crash without completing a round.
        say: Prints a message.
    """

    def __init__(
        self, folder: Path, api: ControlApi, tries: int, say: Callable[[str], None]
    ) -> None:
        self._folder, self._api, self._tries, self._say = folder, api, tries, say
        self._allowed = AllowList(folder)
        self._listed: dict[str, str] | None = None
        self._asked = 0.0
        self._shared: tuple[Path, dict[str, str]] | None = None

    def step(self) -> None:
        """Check the allow-list and the active run once.

        Raises:
            httpx.HTTPError: if the SuperLink does not answer; step again later.
        """
        self._reconcile()
        run_dir = active_run(self._folder)
        if run_dir is None:
            (self._folder / "state" / "announcement.json").unlink(missing_ok=True)
            return
        self._share_list(run_dir)
        request = read_run_request(run_dir)
        if request.state == "wanted":
            self._start(run_dir, request)
        elif request.state == "running":
            self._watch(run_dir, request)
        else:
            self._stop(run_dir, request)

    def forget(self) -> None:
        """Compare keys again, because the SuperLink has restarted."""
        self._listed = None

    def _reconcile(self) -> None:
        """Make the SuperLink's registered keys equal to the allow-list."""
        wanted = {e.fingerprint: e.public_key for e in self._allowed.active().values()}
        if wanted == self._listed:
            return
        names = {e.fingerprint: e.name for e in self._allowed.active().values()}
        there = {node.fingerprint: node.node_id for node in self._api.nodes()}
        for digest in there.keys() - wanted.keys():
            self._api.unregister(there[digest])
            self._say(f"node {there[digest]} is no site any more")
        for digest in wanted.keys() - there.keys():
            node = self._api.register(wanted[digest], names[digest])
            self._say(f"site {names[digest]} is node {node}")
        self._listed = wanted

    def _share_list(self, run_dir: Path) -> None:
        """Give the run the current allow-list: sites come and go while it runs."""
        keys = {name: entry.public_key for name, entry in self._allowed.active().items()}
        if self._shared != (run_dir, keys):
            # The node of each site, so a roll call can name the head of that site's ledger.
            names = {entry.fingerprint: name for name, entry in self._allowed.active().items()}
            nodes = {str(n.node_id): names.get(n.fingerprint) for n in self._api.nodes()}
            replace_private_json(
                run_dir / NODES, {node: name for node, name in nodes.items() if name}
            )
            wanted = CoordinatorHome.open(run_dir).recipe.federation.sites
            asked = {n: key for n, key in keys.items() if not wanted or n in wanted}
            replace_private_json(run_dir / "coordinator" / "sites.json", asked)
            self._shared = run_dir, keys

    def _start(self, run_dir: Path, request: RunRequest) -> None:
        link_memory(run_dir, self._folder)
        self._announce(run_dir)
        number = self._api.start_run(make_bundle(), str(run_dir.resolve()))
        tries, done = request.tries + 1, rounds_done(run_dir)
        self._say(f"run {run_dir.name}: try {tries} is Flower run {number}")
        write_run_request(
            run_dir, request.but(state="running", flower_run=number, tries=tries, round=done)
        )

    def _watch(self, run_dir: Path, request: RunRequest) -> None:
        status, outcome, details = self._api.run_status(request.flower_run)
        if status and status != "finished":
            return
        if outcome == "completed":
            self._end(run_dir, request.but(state="finished", why="completed"))
            return
        died = not status or not details or details.startswith(_DIED) or "heartbeat" in details
        if not died:
            self._end(run_dir, request.but(state="failed", why=details))
            return
        stuck = request.stuck + 1 if rounds_done(run_dir) == request.round else 0
        self._say(f"run {run_dir.name}: {details or outcome or 'unknown to the SuperLink'}")
        if stuck >= self._tries:
            why = f"its process died {stuck} times without a round done: {details}"
            self._end(run_dir, request.but(state="failed", why=why))
        else:
            write_run_request(run_dir, request.but(state="wanted", stuck=stuck, why=details))

    def _stop(self, run_dir: Path, request: RunRequest) -> None:
        """Stop the Flower run if the run's process does not end in time by itself."""
        self._asked = self._asked or time.monotonic()
        status, _, _ = self._api.run_status(request.flower_run)
        if status and status != "finished":
            if time.monotonic() - self._asked < STOP_WITHIN_S:
                return
            self._api.stop_run(request.flower_run)
        self._asked = 0.0
        self._end(run_dir, request.but(state="stopped", why="stopped by a person"))

    def _end(self, run_dir: Path, request: RunRequest) -> None:
        self._say(f"run {run_dir.name}: {request.state}: {request.why}")
        write_run_request(run_dir, request)
        (self._folder / "state" / "announcement.json").unlink(missing_ok=True)
        # The SuperLink has just deleted the run's messages.
        try:
            compact(self._folder / "state" / DATABASE)
        except DataError as error:
            # This run's results are written; the SuperLink itself will refuse the next run.
            print(f"{error.what} {error.remedy}", file=sys.stderr, flush=True)

    def _announce(self, run_dir: Path) -> None:
        """Write the signed announcement for ``site check``."""
        home = CoordinatorHome.open(run_dir)
        announcement = Announcement(
            run=run_dir.name,
            recipe=home.recipe.announced.to_toml(),
            recipe_digest=home.recipe.digest,
            class_names=home.class_names,
            version=__version__,
            code=code_digest(),
        )
        key = read_private(self._folder / "coordinator.key")
        sealed = seal_announcement(key, announcement)
        text = {"body": sealed.text, "signature": sealed.signature.hex()}
        path = self._folder / "state" / "announcement.json"
        replace_private_json(path, text)


def answers(api: ControlApi) -> bool:
    """Whether the SuperLink answers."""
    try:
        api.nodes()
    except (httpx.HTTPError, json.JSONDecodeError):
        return False
    return True
