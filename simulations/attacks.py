"""Hostile sites of a simulation, which replace their honest updates by attacks and sign them.

Each attack computes its update from the honest one, the model that was sent and, for coordinated
attacks, the honest updates of all hostile sites of the round (the knowledge that the papers give to
colluding adversaries).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message

from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.privacy.class_sums import sums_bound
from fgvc_core.protocol.messages import Reply, Request, Sealed, seal
from fgvc_core.protocol.stages import CLASS_SUMS, stage_of
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import ScenarioSettings
from fgvc_core.seeds import derive_seed
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.site import Site
from fieldmark.server.strategies import Tensors

TOGETHER = ("little-is-enough", "inner-product")
RELEASED = ("centre", "class-sums")
"""Phases of a round without training whose releases can be attacked."""


@dataclass
class _Expected:
    message: Message
    request: Request
    site: str
    sent: ArrayRecord
    reply: Message | None = None


@dataclass(frozen=True)
class Material:
    """Inputs of an attack.

    Attributes:
        sent: The model that was sent.
        honest: This site's honest reply.
        colluders: The honest replies of all hostile sites of the round, including this one's.
        sites: Number of sites in the federation.
        seed: Of this site's attack in this round.
        longest: For released sums: the largest norm that this site's declared units allow.
    """

    sent: Tensors
    honest: Tensors
    colluders: list[Tensors]
    sites: int
    seed: int
    longest: float = 0.0


class Attackers:
    """The hostile sites of one run.

    Args:
        recipe: Its ``[scenario]`` describes the attack.
        homes: Site name -> home.
    """

    def __init__(self, recipe: Recipe, homes: dict[str, Path]) -> None:
        assert recipe.scenario is not None
        self._recipe = recipe
        self._scenario: ScenarioSettings = recipe.scenario
        self.homes = homes
        self._expected: dict[str, _Expected] = {}
        self._first: dict[str, Tensors] = {}

    def strikes(self, request: Request, site: str) -> bool:
        """Whether this request will be answered with an attack."""
        scenario = self._scenario
        return (
            (stage_of(request).carries == "update" or request.phase in RELEASED)
            and scenario.attack != "none"
            and site in self.homes
            and request.round >= scenario.first_round
        )

    def expect(self, message_id: str, message: Message, request: Request, site: str) -> None:
        """Record a request to a hostile site."""
        # Kept here, because the server removes the tensors from the message once it is answered.
        sent = message.content.array_records["tensors"]
        self._expected[message_id] = _Expected(message, request, site, sent)

    def expected(self, message_id: str) -> bool:
        """Whether the answer to a message will be an attack."""
        return message_id in self._expected

    def together(self, message_id: str) -> list[str]:
        """The messages whose honest replies this attack needs and that are missing."""
        mine = self._expected[message_id]
        ids = [message_id]
        if self._scenario.attack in TOGETHER:
            ids = [i for i, e in self._expected.items() if e.request.round == mine.request.round]
        return [i for i in ids if self._expected[i].reply is None]

    def hold(self, message_id: str, reply: Message) -> None:
        """Store an honest reply."""
        self._expected[message_id].reply = reply

    def reply(self, message_id: str) -> Message:
        """The attack as a signed reply; an honest refusal is returned unchanged."""
        mine = self._expected[message_id]
        reply = mine.reply
        assert reply is not None
        colluders = [
            _tensors(e.reply)
            for e in self._expected.values()
            if e.request.round == mine.request.round and e.reply is not None
        ]
        self._forget(mine.request.round)
        if reply.has_error() or not _tensors(reply):
            return reply
        return self._signed(mine, reply, [c for c in colluders if c])

    def _forget(self, round_: int) -> None:
        for old in [i for i, e in self._expected.items() if e.request.round < round_ - 1]:
            del self._expected[old]

    def _signed(self, mine: _Expected, reply: Message, colluders: list[Tensors]) -> Message:
        honest = _tensors(reply)
        material = Material(
            sent={name: array.numpy() for name, array in mine.sent.items()},
            honest=honest,
            colluders=colluders,
            sites=self._recipe.partition.sites,
            seed=derive_seed(self._recipe.seed, "attack", mine.site, mine.request.round),
            longest=self._longest(mine),
        )
        tensors = self._crafted(mine.site, material)
        packed = pack_all({n: np.asarray(a, dtype=np.float32) for n, a in tensors.items()})
        body = Reply.parse(str(reply.content.config_records["envelope"]["body"]))
        changes: dict[str, Any] = {
            "tensors": {name: tensor.digest() for name, tensor in packed.items()}
        }
        if self._scenario.attack == "claim":
            changes["examples"] = round(self._scenario.force)
        body = body.model_copy(update=changes)
        assert isinstance(body, Reply)
        sealed: Sealed = seal(Site.open(self.homes[mine.site]).key, body)
        return Message(to_content(sealed, to_array_record(packed)), reply_to=mine.message)

    def _crafted(self, site: str, material: Material) -> Tensors:
        if self._scenario.attack in ("replay", "other-phase"):
            return self._first.setdefault(site, material.honest)
        craft = CRAFTS.get(self._scenario.attack)
        return craft(material, self._scenario.force) if craft else material.honest

    def _longest(self, mine: _Expected) -> float:
        """Largest norm, without noise, of a sum that a site's declared units allow in a phase."""
        privacy = self._recipe.privacy
        if privacy is None or mine.request.phase not in RELEASED:
            return 0.0
        bound = 1.0
        if stage_of(mine.request) is CLASS_SUMS:
            bound = sums_bound(privacy.count_coordinate)
        return bound * Site.open(self.homes[mine.site]).settings.data.units


def _tensors(reply: Message) -> Tensors:
    if reply.has_error():
        return {}
    arrays = reply.content.array_records.get("tensors", ArrayRecord())
    return {name: array.numpy() for name, array in arrays.items()}


def _moved(material: Material, factor: float) -> Tensors:
    return {n: s + factor * (material.honest[n] - s) for n, s in material.sent.items()}


def _flipped(material: Material, factor: float) -> Tensors:
    return _moved(material, -factor)


def _nan(material: Material, strength: float) -> Tensors:
    return {name: np.full_like(array, np.nan) for name, array in material.honest.items()}


def _far(material: Material, value: float) -> Tensors:
    """A center far away; class sums stay honest."""
    return {
        name: np.full_like(array, value) if name == "centre" else array
        for name, array in material.honest.items()
    }


def _against_itself(material: Material, multiple: float) -> Tensors:
    """A sum that points against the honest one, with the largest plausible norm."""
    return {
        name: (-multiple * material.longest / max(float(np.linalg.norm(array)), 1e-30)) * array
        for name, array in material.honest.items()
    }


def _random(material: Material, deviation: float) -> Tensors:
    generator = np.random.default_rng(material.seed)
    return {
        n: s + generator.normal(0, deviation, s.shape).astype(np.float32)
        for n, s in material.sent.items()
    }


def _sent_back(material: Material, strength: float) -> Tensors:
    return material.sent


def _little_is_enough(material: Material, deviations: float) -> Tensors:
    """Mean minus z deviations of the colluders' honest updates (Baruch et al., algorithm 3)."""
    hostile = len(material.colluders)
    if deviations == 0.0:
        supporters = math.floor(material.sites / 2 + 1) - hostile
        honest = material.sites - hostile
        share = min(max((honest - supporters) / honest, 0.5), 0.999)
        deviations = NormalDist().inv_cdf(share)
    stacked = {n: np.stack([c[n] for c in material.colluders]) for n in material.sent}
    return {n: s.mean(axis=0) - deviations * s.std(axis=0) for n, s in stacked.items()}


def _inner_product(material: Material, factor: float) -> Tensors:
    """Minus the mean of the honest updates, times a factor (Xie et al. 2020, section 4)."""
    return {
        n: s - factor * (np.mean([c[n] for c in material.colluders], axis=0) - s)
        for n, s in material.sent.items()
    }


CRAFTS: dict[str, Callable[[Material, float], Tensors]] = {
    "sign-flip": _flipped,
    "scaled": _moved,
    "not-a-number": _nan,
    "random": _random,
    "free-rider": _sent_back,
    "little-is-enough": _little_is_enough,
    "inner-product": _inner_product,
    "backdoor": _moved,
    "far-centre": _far,
    "one-direction": _against_itself,
}
