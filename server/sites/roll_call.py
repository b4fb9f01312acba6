"""Attendance: the roll call before round 1, and sites that come and go after it.

A node belongs to a site once it has answered a signed request with that site's registered key
(:mod:`.membership`).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fgvc_core.errors import PeerError, RunFailed
from fgvc_core.flower.records import FAULTS, Unsigned, to_content, words_of_a_site
from fgvc_core.protocol.messages import Request, new_nonce, seal
from fgvc_core.words import counted
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.membership import (
    ApprovalPending,
    Membership,
    TurnedAway,
    refused_by_all,
)
from fieldmark.server.sites.prefetch import Fetched, LookAhead

_TYPES: dict[str, str] = {
    "roll_call": "query.roll_call",
    "train": "train",
    "score": "evaluate",
    "release": "query.release",
    "send": "query.send",
}
LONGEST_S = 300.0
"""A roll call closes after this time even without a quorum, in seconds."""
GRACE_S = 15.0
"""How long a roll call with a quorum waits for the other sites, in seconds."""
REPLY_BYTES = 1e6
"""Largest answer to a roll call, in bytes; it has no tensors."""
AGAIN_S = 30.0
"""How long a roll call waits for nodes that went away during it, in seconds."""
SOONEST_S, LATEST_S = 15.0, 600.0
"""Bounds of the time until a site whose people have not decided is asked again, in seconds."""

AT_ONCE, ONE_MORE_S = 6, 60.0
"""Calls of one node in a row without a pause, and seconds for each further one.

Each call is a message with the recipe, and events: a node that answers with errors, or that goes
away and comes back without end, must fill neither database nor event log.
"""


@dataclass
class Undecided:
    """Since when, in seconds of the grid's clock, the people at a node have to decide."""

    since: float
    node: int
    due: float = 0.0


class Attendance(Membership):
    """Tracks which registered site is at which Flower node.

    Attributes:
        nodes: Site -> its node, for sites that are present.
        undecided: Site -> when its people were first, and are next, asked to approve the run.
    """

    def __init__(self, grid: Grid, home: CoordinatorHome, run: str, events: EventLog) -> None:
        super().__init__(home)
        self._grid = grid
        self._run = run
        self._events = events
        # The same for every site, and written in milliseconds.
        self._announced = home.recipe.announced.to_toml()
        self._calls: dict[int, tuple[str, Request]] = {}
        self._known: set[int] = set()
        self._gone: set[int] = set()
        # Node whose answer was not signed -> when it is called again.
        self._later: dict[int, float] = {}
        # Node -> (calls that it has left, as of when).
        self._left: dict[int, tuple[float, float]] = {}
        self.nodes: dict[str, int] = {}
        self.undecided: dict[str, Undecided] = {}
        # A grid may have its own clock (a simulated one does) and record when a reply arrived.
        self._clock: Callable[[], float] = getattr(grid, "clock", time.monotonic)
        self._arrived: Callable[[str], float | None] = getattr(grid, "arrived", lambda _: None)
        self._limit_reply: Callable[..., None] = getattr(grid, "limit_reply", lambda *_: None)
        self._forget: Callable[[str], None] = getattr(grid, "forget", lambda _: None)
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
        if not self.nodes and not self.undecided and self.refusals:
            raise refused_by_all(self.refusals)
        if not self.nodes and not self.undecided:
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
            RunFailed: if they do not come within ``wait_for_sites_s`` (``wait_for_approval_s``
                while people have to decide), or all have answered.
        """
        settings, started, told = self._home.settings, self._clock(), None
        while self._look() < (needed := self.quorum()):
            now = sorted(self.nodes), self._absent()
            if now != told:
                told = now
                self._events.emit(
                    "waiting_for_sites", present=now[0], needed=needed, waiting_for=now[1]
                )
            # Nobody else can come once as many nodes have answered as there are sites.
            complete = not self._calls and len(self._known) >= len(self.keys)
            patience = settings.wait_for_sites_s
            if self.undecided or self._later:
                complete = False
            # A run is approved once: who was admitted to it before is waited for as one away.
            if self.undecided.keys() - self.units.keys():
                patience = max(patience, settings.wait_for_approval_s)
            if complete or self._clock() - started >= patience:
                raise self._too_few(needed)
            time.sleep(settings.poll_s)

    def _absent(self) -> dict[str, str]:
        """Each site that was asked and takes no part, and why."""

        def why(site: str) -> str:
            undecided = "nobody there has approved the run yet"
            if site in self.undecided:
                return undecided
            return self.refusals.get(site) or self.reasons.get(site, "away")

        return {site: why(site) for site in sorted(self.keys.keys() - self.nodes)}

    def _too_few(self, needed: int) -> RunFailed:
        missing = self._absent()
        said = [f"{site}: {why.rstrip('.')}" for site, why in list(missing.items())[:5]]
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return RunFailed(
            f"{len(self.nodes)} of the "
            f"{counted(len(self.keys), 'site that was', 'sites that were')} asked take part, and a "
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

    def present(self) -> list[str]:
        """The sites that are present now, sorted; unlike :meth:`refresh` it waits for none."""
        self._look()
        return sorted(self.nodes)

    def seconds(self) -> float:
        """Seconds of the grid's clock, which a simulation's is not the machine's."""
        return self._clock()

    def _look(self) -> int:
        """Update who is present; returns how many sites are."""
        self._read_allow_list()
        present = self._may_be_asked()
        for site, node in list(self.nodes.items()):
            if site not in self.keys:
                self._leave(site, "removed")
            elif node not in present:
                # It is called again when it comes back, because it may be another process then.
                self._known.discard(node)
                self._leave(site, "away")
        for site, undecided in list(self.undecided.items()):
            if undecided.node not in present:
                del self.undecided[site]
            elif self._clock() >= undecided.due:
                undecided.due = math.inf
                self._call(undecided.node)
        for node, due in list(self._later.items()):
            if node in present and self._clock() >= due:
                del self._later[node]
                self._call(node)
        for node in sorted(present - self._known):
            if self._calls_left(node) >= 1:
                self._call(node)
        self._hear_all()
        return len(self.nodes)

    def _calls_left(self, node: int) -> float:
        """How often a node may be called now."""
        left, when = self._left.get(node, (float(AT_ONCE), 0.0))
        return min(left + (self._clock() - when) / ONE_MORE_S, AT_ONCE)

    def _call(self, node: int) -> None:
        """Ask a node who it is."""
        self._left[node] = max(self._calls_left(node) - 1, 0.0), self._clock()
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
            recipe=self._announced,
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
        if message is None:
            self._forget(message_id)
        if message is None or (message.has_error() and message.error.code not in FAULTS):
            # No answer: the node is called again when it is back.
            self._known.discard(node)
            self._gone.add(node)
        self._admit(node, request, message)
        return True

    def _not_admitted(
        self, node: int, reason: str, registered: str | None = None, proven: str | None = None
    ) -> None:
        # Not authenticated: this is only the site that the node is registered for.
        told = {} if registered is None else {"registered": registered}
        if proven is not None:
            told["proven"] = proven
        self._events.emit("roll_call", site=None, node=node, accepted=False, reason=reason, **told)

    def _leave(self, site: str, why: str) -> None:
        node = self.nodes.pop(site)
        self._events.emit("site_left", site=site, node=node, why=why)

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
            nodes = sorted(self._may_be_asked())
            now = time.monotonic()
            if len(nodes) >= needed and enough is None:
                enough = now
            patience = now - started > self._home.settings.wait_for_sites_s
            if len(nodes) >= len(self.keys) or patience:
                return nodes
            if enough is not None and now - enough > GRACE_S:
                return nodes
            time.sleep(self._home.settings.poll_s)

    def _may_be_asked(self) -> set[int]:
        """The nodes that are present, less those of registered sites that this run does not ask.

        Their people would be bothered for nothing, and they are not who is waited for.
        """
        registered = self.ledgers.nodes()
        return {
            node
            for node in self._grid.get_node_ids()
            if node not in registered or registered[node] in self.keys
        }

    def _admit(self, node: int, request: Request, message: Message | None) -> None:
        name: str | None = None
        try:
            if message is None:
                raise PeerError("No answer to the roll call.")
            with words_of_a_site():
                name, reply = self._proven(request, message)
            if name in self.nodes:
                raise PeerError(_elsewhere(name))
            self._keep_units(name, reply.examples)
        except ApprovalPending as pending:
            if pending.site in self.nodes:
                self._not_admitted(node, _elsewhere(pending.site))
            else:
                self._ask_again(pending.site, node)
            return
        except PeerError as error:
            for site in [s for s, undecided in self.undecided.items() if undecided.node == node]:
                del self.undecided[site]
            proven = error.site if isinstance(error, TurnedAway) else name
            if proven is not None:
                self.reasons[proven] = error.what
            registered = self.ledgers.site_at(node) if proven is None else None
            if isinstance(error, Unsigned):
                # Its disk may be full now, and be mended while the run goes on.
                self._later[node] = self._clock() + ONE_MORE_S
                if registered is not None:
                    self.reasons[registered] = error.what
            self._not_admitted(node, error.what, registered=registered, proven=proven)
            return
        self.nodes[name] = node
        for told in (self.undecided, self.refusals, self.reasons):
            told.pop(name, None)
        self._events.emit(
            "roll_call",
            site=name,
            node=node,
            accepted=True,
            reason=None,
            version=reply.version,
            code_digest=reply.code_digest,
        )

    def _ask_again(self, site: str, node: int) -> None:
        """Note that people at a site have to decide, and when to ask it again.

        The longer they take, the more seldom: a site answers a limited number of roll calls a day.
        """
        now = self._clock()
        if site not in self.undecided:
            self._events.emit("awaiting_approval", site=site, node=node)
            self.undecided[site] = Undecided(now, node)
        undecided = self.undecided[site]
        undecided.due = now + min(max((now - undecided.since) / 10, SOONEST_S), LATEST_S)

    def _message(self, request: Request, node: int, arrays: ArrayRecord | None) -> Message:
        content = to_content(seal(self._home.key, request), arrays)
        return Message(
            content,
            dst_node_id=node,
            message_type=_TYPES[request.kind],
            group_id=str(request.round),
        )


def _elsewhere(site: str) -> str:
    return f"Site '{site}' has answered from another node already."
