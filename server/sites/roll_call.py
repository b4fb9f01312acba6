"""Attendance: the roll call before round 1, and sites that come and go after it.

A node belongs to a site once it has answered a signed request with that site's registered key; what
a reply claims about its sender only selects the key that its signature must match.
"""

import math
import time
from collections.abc import Callable

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fgvc_core import __version__
from fgvc_core.errors import PeerError, PolicyRefusal, RunFailed
from fgvc_core.flower.records import FAULTS, from_message, to_content, words_of_a_site
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import PublicKey, fingerprint, read_public
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal, unseal
from fieldmark.server.home import CoordinatorHome, read_allow_list
from fieldmark.server.ledger_memory import LedgerMemory
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.prefetch import Fetched, LookAhead

_TYPES: dict[str, str] = {
    "roll_call": "query.roll_call",
    "train": "train",
    "score": "evaluate",
    "release": "query.release",
}
LONGEST_S = 300.0
"""A roll call closes after this time even without a quorum, in seconds."""
GRACE_S = 15.0
"""How long a roll call with a quorum waits for the other sites, in seconds."""
REPLY_BYTES = 1e6
"""Largest answer to a roll call, in bytes; it has no tensors."""
AGAIN_S = 30.0
"""How long a roll call waits for nodes that went away during it, in seconds."""


class Attendance:
    """Tracks which registered site is at which Flower node.

    Attributes:
        keys: Site -> its registered key in the current allow-list.
        nodes: Site -> its node, for sites that are present.
        units: Site -> its declared units.
        refusals: Site -> the reason by its own policy at the roll call.
        ledgers: Memory of the sites' ledgers across runs.
    """

    def __init__(self, grid: Grid, home: CoordinatorHome, run: str, events: EventLog) -> None:
        self._grid = grid
        self._home = home
        self._run = run
        self._events = events
        self.keys: dict[str, PublicKey] = {
            name: read_public(text) for name, text in home.allow_list.items()
        }
        self._names = {fingerprint(key): name for name, key in self.keys.items()}
        self._listed: tuple[int, int] = (0, 0)
        self.ledgers = LedgerMemory(home.run_dir, home.recipe)
        self._calls: dict[int, tuple[str, Request]] = {}
        self._known: set[int] = set()
        self._gone: set[int] = set()
        self.nodes: dict[str, int] = {}
        self.units: dict[str, int] = {}
        self.refusals: dict[str, str] = {}
        # A grid may have its own clock (a simulated one does) and record when a reply arrived.
        self._clock: Callable[[], float] = getattr(grid, "clock", time.monotonic)
        self._arrived: Callable[[str], float | None] = getattr(grid, "arrived", lambda _: None)
        self._limit_reply: Callable[..., None] = getattr(grid, "limit_reply", lambda *_: None)
        # (pieces received, pieces in all) of a reply that is announced and incomplete.
        self._arriving: Callable[[str], tuple[int, int] | None] = getattr(
            grid, "arriving", lambda _: None
        )

    def roll_call(self) -> list[str]:
        """Find out which node is which site; returns the sorted names of present sites.

        It closes once all have answered; after ``roll_call_s`` with a quorum; ``GRACE_S`` after a
        later quorum; after ``LONGEST_S`` in any case. A node that went away meanwhile adds at most
        ``AGAIN_S``. Without a quorum, sites that have not answered are waited for, at most
        ``wait_for_sites_s``. Nothing that a site sends or withholds makes it longer.

        Raises:
            PolicyRefusal: if every site that answers refuses by its own policy.
            RunFailed: if too few of the sites that were asked take part.
        """
        for node in self._wait_for_nodes():
            self._call(node)
        started = self._clock()
        deadline = started + self._home.settings.roll_call_s
        # In turn, so a simulated run always admits its sites in the same order.
        for node in list(self._calls):
            self._hear(node, deadline)
        self._wait_for_quorum(started)
        called = len(self._known | self._gone)
        self._call_again()
        self._name_the_silent(self._clock() - started)
        if not self.nodes and self.refusals:
            raise refused_by_all(self.refusals)
        if not self.nodes:
            raise RunFailed(
                f"None of {called} nodes proved to be a registered site.",
                why="Without a site there is nothing to learn from.",
                remedy="The run's events.jsonl says what each answered, each site's log why.",
            )
        self._wait_for_enough()
        return sorted(self.nodes)

    def _wait_for_enough(self) -> None:
        """Wait until as many sites are present as a round needs, and record for whom.

        Raises:
            RunFailed: if they do not come within ``wait_for_sites_s``, or all have answered.
        """
        needed = self.quorum()
        if self._look() >= needed:
            return
        deadline = self._clock() + self._home.settings.wait_for_sites_s
        away = {site: self.refusals.get(site, "away") for site in self.keys.keys() - self.nodes}
        self._events.emit(
            "waiting_for_sites", present=sorted(self.nodes), needed=needed, waiting_for=away
        )
        while self._look() < needed:
            # Nobody else can come once as many nodes have answered as there are sites.
            complete = not self._calls and len(self._known) >= len(self.keys)
            if complete or self._clock() >= deadline:
                raise self._too_few(needed)
            time.sleep(self._home.settings.poll_s)

    def _too_few(self, needed: int) -> RunFailed:
        missing = sorted(self.keys.keys() - self.nodes)
        said = [f"{site}: {self.refusals.get(site, 'away')}" for site in missing[:5]]
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return RunFailed(
            f"{len(self.nodes)} of the {len(self.keys)} sites that were asked take part, and a "
            f"round needs {needed}. Missing: {'; '.join(said)}{more}.",
            why="A model of fewer sites would not be this federation's (federation.quorum = "
            f"{self._home.recipe.federation.quorum:g}).",
            remedy="Go on when they are back (the last checkpoint is whole), or ask fewer sites "
            "(federation.sites) or a smaller share of them (federation.quorum).",
        )

    def _wait_for_quorum(self, started: float) -> None:
        """Poll the silent nodes until a quorum has answered."""
        closes = started + max(LONGEST_S, self._home.settings.roll_call_s)
        if len(self.nodes) >= self.quorum():
            return
        reached = False
        while self._calls and self._clock() < closes:
            time.sleep(self._home.settings.poll_s)
            self._hear_all()
            if not reached and len(self.nodes) >= self.quorum():
                reached, closes = True, min(closes, self._clock() + GRACE_S)

    def _hear_all(self) -> None:
        """Poll each node that has not answered, without waiting."""
        for node in list(self._calls):
            self._hear(node, self._clock())

    def quorum(self, share: float = 1.0) -> int:
        """Fewest accepted replies with which a round counts.

        It is a share of the sites that were asked to take part, whether they are present or not.

        Args:
            share: Share of these sites that a round asks, 0 to 1; at least one site.
        """
        # The small term absorbs rounding.
        asked = max(math.ceil(share * len(self.keys) - 1e-9), 1)
        return math.ceil(self._home.recipe.federation.quorum * asked - 1e-9)

    def _name_the_silent(self, seconds: float) -> None:
        """Record nodes without an answer; a late answer is still accepted."""
        silent = {node: self.ledgers.site_at(node) for node in self._calls}
        for node, site in silent.items():
            of = f" It is registered for site '{site}'." if site else ""
            self._not_admitted(
                node, f"No answer to the roll call within {seconds:.0f} s.{of}", registered=site
            )
        if silent:
            self._events.emit(
                "roll_call_closed",
                seconds=round(seconds, 1),
                admitted=len(self.nodes),
                waited_for=[site or f"node {node}" for node, site in silent.items()],
            )

    def _call_again(self) -> None:
        """Call nodes again that went away during the roll call, as they come back.

        A node restarts within seconds; without this its site would miss a round.
        """
        left, patience = set(self._gone), time.monotonic() + AGAIN_S
        deadline = self._clock() + AGAIN_S
        while left and time.monotonic() < patience:
            for node in sorted(left & set(self._grid.get_node_ids())):
                left.discard(node)
                self._call(node)
                self._hear(node, deadline)
            if left:
                time.sleep(self._home.settings.poll_s)

    def refresh(self) -> list[str]:
        """Update who is present; returns the sorted names of the sites that are present.

        A new node gets its own roll call, and takes part from the round after its answer. A site
        that is no longer on the allow-list is removed. If too few are present, this waits for
        others to come back.

        Raises:
            RunFailed: if they do not.
        """
        self._wait_for_enough()
        return sorted(self.nodes)

    def _look(self) -> int:
        """Update who is present; returns how many sites are."""
        self._read_allow_list()
        present = set(self._grid.get_node_ids())
        for site, node in list(self.nodes.items()):
            if site not in self.keys:
                self._leave(site, "removed")
            elif node not in present:
                # It is called again when it comes back, because it may be another process then.
                self._known.discard(node)
                self._leave(site, "away")
        for node in sorted(present - self._known):
            self._call(node)
        self._hear_all()
        return len(self.nodes)

    def _call(self, node: int) -> None:
        """Ask a node who it is."""
        self._known.add(node)
        self._gone.discard(node)
        recipe = self._home.recipe
        # The node has not identified itself yet; the SuperLink knows its registered key.
        seen = self.ledgers.head_at(node)
        request = Request(
            kind="roll_call",
            run=self._run,
            round=0,
            site="",
            nonce=new_nonce(),
            recipe_digest=recipe.digest,
            recipe=recipe.announced.to_toml(),
            class_names=self._home.class_names,
            known_head="" if seen is None else seen.head,
        )
        (message_id,) = self._grid.push_messages([self._message(request, node, None)])
        self._limit_reply(REPLY_BYTES, message_id)
        self._calls[node] = message_id, request

    def _hear(self, node: int, deadline: float) -> bool:
        """Admit or reject a node by its answer; False if there is none by the deadline."""
        message_id, request = self._calls[node]
        fetched = self._pull(message_id, deadline)
        message = None if fetched is None else fetched.message
        if message is None and node in self._grid.get_node_ids():
            return False
        del self._calls[node]
        if message is None or (message.has_error() and message.error.code not in FAULTS):
            # No answer: the node is called again when it is back.
            self._known.discard(node)
            self._gone.add(node)
        self._admit(node, request, message)
        return True

    def _not_admitted(self, node: int, reason: str, registered: str | None = None) -> None:
        # Not authenticated: this is only the site that the node is registered for.
        told = {} if registered is None else {"registered": registered}
        self._events.emit("roll_call", site=None, node=node, accepted=False, reason=reason, **told)

    def _leave(self, site: str, why: str) -> None:
        node = self.nodes.pop(site)
        self._events.emit("site_left", site=site, node=node, why=why)

    def _read_allow_list(self) -> None:
        """Reload the coordinator's allow-list into the same dictionary, which others share."""
        written = (self._home.run_dir / "coordinator" / "sites.json").stat()
        stamp = written.st_mtime_ns, written.st_ino
        if stamp == self._listed:
            return
        self._listed = stamp
        found = read_allow_list(self._home.run_dir)
        self.keys.clear()
        self.keys.update({name: read_public(text) for name, text in found.items()})
        self._names = {fingerprint(key): name for name, key in self.keys.items()}

    def _pull(
        self,
        message_id: str,
        deadline: float,
        site: str = "",
        ahead: LookAhead | None = None,
        grace: float = 0.0,
    ) -> Fetched | None:
        """The reply to a message; None at the deadline, or once its site was removed.

        A reply that was announced by then has ``grace`` more seconds to become complete.
        """
        # First, because a prefetch may still be using the grid.
        for fetched in ahead.found(message_id) if ahead is not None else ():
            if fetched.message.metadata.reply_to_message_id == message_id:
                return fetched
        while True:
            arrived = self._arrived(message_id)
            if arrived is not None and arrived > deadline:
                return None
            for message in self._grid.pull_messages([message_id]):
                if message.metadata.reply_to_message_id == message_id:
                    return Fetched(message)
            self._read_allow_list()
            over = self._clock() - deadline
            announced = grace > 0 and self._arriving(message_id) is not None
            if over >= (grace if announced else 0) or (site and site not in self.keys):
                return None
            time.sleep(self._home.settings.poll_s)

    def _wait_for_nodes(self) -> list[int]:
        """All nodes, once there is one per registered site, or those present when the wait ends.

        If a quorum is present, the wait for the rest is short.
        """
        started = time.monotonic()
        needed = self.quorum()
        enough: float | None = None
        while True:
            self._read_allow_list()
            nodes = sorted(self._grid.get_node_ids())
            now = time.monotonic()
            if len(nodes) >= needed and enough is None:
                enough = now
            patience = now - started > self._home.settings.wait_for_sites_s
            if len(nodes) >= len(self.keys) or patience:
                return nodes
            if enough is not None and now - enough > GRACE_S:
                return nodes
            time.sleep(self._home.settings.poll_s)

    def _admit(self, node: int, request: Request, message: Message | None) -> None:
        try:
            if message is None:
                raise PeerError("No answer to the roll call.")
            with words_of_a_site():
                name, reply = self._proven(request, message)
        except PeerError as error:
            self._not_admitted(node, error.what)
            return
        self.nodes[name] = node
        self.units[name] = reply.examples
        self._events.emit(
            "roll_call",
            site=name,
            node=node,
            accepted=True,
            reason=None,
            version=reply.version,
            code_digest=reply.code_digest,
        )

    def _check_code(self, reply: Reply) -> None:
        """Check that a site runs the coordinator's code; for honest sites, because one can lie.

        Raises:
            PeerError: if it runs other code that ``accept_code`` does not name.
        """
        own = code_digest()
        if reply.code_digest == own or reply.code_digest in self._home.settings.accept_code:
            return
        said = f"Fieldmark {reply.version or 'unknown'} (code {reply.code_digest[:12] or 'none'})"
        raise PeerError(
            f"Site '{reply.site}' runs {said}, and this coordinator {__version__} (code "
            f"{own[:12]}). Install the same there, or add '{reply.code_digest}' to accept_code in "
            "server.toml."
        )

    def _check_units(self, name: str, units: int) -> None:
        """Check the declared units, which are the site's weight in every run.

        Raises:
            PeerError: if they are out of range or differ from the earlier declaration.
        """
        most = self._home.recipe.federation.max_weight
        if units > most or (self._home.recipe.privacy is not None and units < 1):
            raise PeerError(
                f"Site '{name}' declares {units} units; 1 to {most} count (federation.max_weight)."
            )
        if not units:
            return
        declared = self.units.get(name) or self.ledgers.units(name)
        if declared and declared != units:
            raise PeerError(
                f"Site '{name}' declares {units} units, and declared {declared} before. If that "
                "is right: fieldmark server accept-units."
            )
        self.ledgers.keep_units(name, units)

    def _proven(self, request: Request, message: Message) -> tuple[str, Reply]:
        """The site that a roll-call answer is signed by, and the answer.

        Raises:
            PeerError: if no registered site signed it, or the site may not take part.
        """
        sealed, packed = from_message(message)
        if packed:
            raise PeerError("An answer to the roll call carries tensors.")
        claimed = Reply.parse(sealed.text)
        if not isinstance(claimed, Reply):
            raise PeerError("The answer is no reply.")
        # Not trusted yet: it only selects the registered key that the signature must match.
        name = self._names.get(fingerprint(read_public(claimed.public_key)))
        if name is None:
            raise PeerError("The key that answered is not registered.")
        reply = unseal(Reply, sealed, self.keys[name], {})
        if (reply.nonce, reply.run) != (request.nonce, request.run):
            raise PeerError("The answer is to another roll call.")
        if reply.site != name:
            raise PeerError(f"The site calls itself '{reply.site}', its key is '{name}'.")
        if reply.code == "refused-policy":
            self.refusals[name] = reply.reason
        if reply.code != "ok":
            raise PeerError(f"Site '{name}' answered '{reply.code}'. {reply.reason}")
        self._check_code(reply)
        seen = self.ledgers.head(name)
        if seen is not None and reply.ledger_length < seen.length:
            raise PeerError(shorter(reply.ledger_length, seen.length))
        self.ledgers.saw(reply, sealed)
        if name in self.nodes:
            raise PeerError(f"Site '{name}' has answered from another node already.")
        self._check_units(name, reply.examples)
        return name, reply

    def _message(self, request: Request, node: int, arrays: ArrayRecord | None) -> Message:
        content = to_content(seal(self._home.key, request), arrays)
        return Message(
            content,
            dst_node_id=node,
            message_type=_TYPES[request.kind],
            group_id=str(request.round),
        )


def shorter(length: int, seen: int) -> str:
    """Refusal text for a site whose ledger has fewer entries than seen before."""
    return (
        f"The site's ledger has {length} entries, and had {seen}: an old copy was put back. What "
        "it lacks is charged with: fieldmark server ledger-statement, then at the site: fieldmark "
        "site ledger recover."
    )


def refused_by_all(refusals: dict[str, str]) -> PolicyRefusal:
    """The error that ends a run in which every site refuses; site -> its reason."""
    reasons = sorted(set(refusals.values()))
    return PolicyRefusal(
        f"{len(refusals)} sites refuse by their own policy: {' '.join(reasons[:3])}",
        why="A site's policy is not the coordinator's to change; its ledger is as it was.",
        remedy="Ask for what the sites allow; 'fieldmark site budget' at a site says what is left.",
    )
