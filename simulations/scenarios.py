"""Fault injection for simulated rounds: an in-process grid whose nodes fail, delay or attack.

The server's code is unchanged: it sees messages that never come, come late, carry an error, or
carry an attack that a hostile site signed with its valid key. Time is simulated: a reply has a time
of arrival, and the clock advances when the server waits for one, so a deadline of an hour costs
nothing.
"""

import json
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from fgvc_core.errors import ConfigurationError
from fgvc_core.flower.internals import give_id
from fgvc_core.protocol.messages import Request
from fgvc_core.protocol.stages import stage_of
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import ScenarioSettings
from fgvc_core.seeds import derive_seed
from fgvc_core.words import counted
from fieldmark.simulations.attacks import Attackers
from fieldmark.simulations.grid import InProcessGrid
from fieldmark.simulations.poisoning import POISONING, run_poisoned

LATE = 1.5
"""Arrival of a straggler's reply, as a multiple of the deadline."""

CRASHED = 2
"""Error code of a node whose runtime failed."""


class FaultyGrid(InProcessGrid):
    """An in-process grid that acts out a scenario.

    Args:
        executor: Runs the client app.
        homes: The sites' homes, in the order of the nodes.
        workers: How many tasks run at once.
        recipe: Its ``[scenario]`` defines faults and attacks.
        told: File to which hostile sites and injected faults are written, or None.
    """

    def __init__(
        self,
        executor: Executor,
        homes: list[Path],
        workers: int,
        recipe: Recipe,
        told: Path | None = None,
    ) -> None:
        super().__init__(executor, [{"site-home": str(home)} for home in homes], workers)
        assert recipe.scenario is not None
        self._scenario: ScenarioSettings = recipe.scenario
        self._recipe = recipe
        self._sites = dict(zip(self._contexts, homes, strict=True))
        names = sorted(home.name for home in homes)
        self._slow = set(draw(recipe, names, self._scenario.slow_links, "slow"))
        hostile = draw(recipe, names, self._scenario.attackers, "attackers")
        if self._scenario.attack != "none" and not hostile:
            raise ConfigurationError(
                f"scenario.attackers = {self._scenario.attackers:g} of "
                f"{counted(len(names), 'site')} is "
                "nobody.",
                why="The run would be called one under attack, and nobody would attack.",
                remedy=f"Set scenario.attackers to {1 / max(len(names), 1):.2g} or more.",
            )
        self.attackers = Attackers(recipe, {h.name: h for h in homes if h.name in hostile})
        self._now = 0.0
        self._due: dict[str, float] = {}
        self._asked: dict[str, tuple[str, Request]] = {}
        self._fates: dict[int, dict[str, str]] = {}
        self._told = told
        self._tell()

    def _tell(self) -> None:
        """Write the hostile sites and the faults so far to the file."""
        if self._told is not None:
            told = {"attackers": sorted(self.attackers.homes), "rounds": self._fates}
            self._told.write_text(json.dumps(told, indent=1), encoding="utf-8")

    def clock(self) -> float:
        """Simulated seconds."""
        return self._now

    def arrived(self, message_id: str) -> float | None:
        """Simulated time of a reply's arrival, or None if it has not arrived."""
        due = self._due.get(message_id)
        return due if due is not None and due <= self._now else None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, each with its fault and time of arrival."""
        ids: list[str] = []
        for message in messages:
            body = message.content.config_records["envelope"]["body"]
            request = Request.parse(str(body))
            assert isinstance(request, Request)
            ids.append(self._push(message, request))
        return ids

    def _push(self, message: Message, request: Request) -> str:
        site = self._sites[message.metadata.dst_node_id].name
        fate = self._fate(request, site)
        if fate in ("dropout", "crash"):
            message_id = give_id(message)
            self._due[message_id] = float("inf") if fate == "dropout" else self._now
            if fate == "crash":
                self._ready[message_id] = Message(Error(CRASHED, "crash"), reply_to=message)
                self._pushed[message_id] = self._count
            return message_id
        late = self._seconds_on_the_way(message, site)
        if fate == "straggle":
            late += LATE * self._recipe.federation.deadline_s
        if late:
            # A copy, because the server removes the tensors of a message that it no longer awaits.
            message = Message(
                RecordDict(dict(message.content)),
                dst_node_id=message.metadata.dst_node_id,
                message_type=message.metadata.message_type,
                group_id=message.metadata.group_id,
            )
        (message_id,) = super().push_messages([message])
        self._due[message_id] = self._now + late
        if self.attackers.strikes(request, site):
            self.attackers.expect(message_id, message, request, site)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived; a request for a later one advances the clock."""
        found: list[Message] = []
        for message_id in message_ids:
            due = self._due.get(message_id, self._now)
            if due > self._now:
                wait = self._recipe.federation.deadline_s
                self._now = due if due != float("inf") else self._now + wait
                continue
            found.append(self._computed(message_id))
        return found

    def _computed(self, message_id: str) -> Message:
        self._due.pop(message_id, None)
        if not self.attackers.expected(message_id):
            return self._wait(message_id)
        for other in self.attackers.together(message_id):
            self.attackers.hold(other, self._wait(other))
        return self.attackers.reply(message_id)

    def _wait(self, message_id: str) -> Message:
        while True:
            for reply in super().pull_messages([message_id]):
                return reply

    def _submit(self, message: Message, context: Context) -> "Future[tuple[Message, Context]]":
        site = self._sites[message.metadata.dst_node_id].name
        body = message.content.config_records["envelope"]["body"]
        request = Request.parse(str(body))
        assert isinstance(request, Request)
        if self._scenario.attack in POISONING and self.attackers.strikes(request, site):
            home = self._sites[message.metadata.dst_node_id]
            return self._executor.submit(
                run_poisoned, self._client_app, message, context, home, self._scenario
            )
        return super()._submit(message, context)

    def _seconds_on_the_way(self, message: Message, site: str) -> float:
        if site not in self._slow:
            return 0.0
        tensors = message.content.array_records["tensors"]
        nbytes = sum(len(array.data) for array in tensors.values())
        return 2 * 8 * nbytes / (self._scenario.slow_mbit_s * 1e6)

    def _fate(self, request: Request, site: str) -> str:
        stage = stage_of(request)
        if stage.carries == "masked":
            return self._silence(request.round, stage.name, site)
        if stage.carries not in ("update", "ready"):
            return ""
        if request.round not in self._fates:
            self._fates[request.round] = self._draw_fates(request.round)
            self._tell()
        return self._fates[request.round].get(site, "")

    def _silence(self, round_: int, sum_: str, site: str) -> str:
        """Whether a site that was ready stays away from a sum, each time that it is asked."""
        purpose = "scenario", "silent", sum_, round_, site
        if np.random.default_rng(derive_seed(self._recipe.seed, *purpose)).random() >= (
            self._scenario.silent
        ):
            return ""
        fates = self._fates.setdefault(round_, {})
        if site not in fates:
            fates[site] = "silent"
            self._tell()
        return "dropout"

    def _draw_fates(self, round_: int) -> dict[str, str]:
        names = sorted(home.name for home in self._sites.values())
        scenario = self._scenario
        shuffled = draw(self._recipe, names, 1.0, "fates", round_)
        fates: dict[str, str] = {}
        start = 0
        shares = (
            ("dropout", scenario.dropout),
            ("straggle", scenario.straggle),
            ("crash", scenario.crash),
        )
        for fate, share in shares:
            count = round(share * len(names))
            fates.update(dict.fromkeys(shuffled[start : start + count], fate))
            start += count
        return fates


def draw(recipe: Recipe, names: list[str], share: float, *purpose: str | int) -> list[str]:
    """A random share of the names, in the order drawn, from the recipe's seed."""
    generator = np.random.default_rng(derive_seed(recipe.seed, "scenario", *purpose))
    return generator.permutation(names).tolist()[: round(share * len(names))]
