"""Sites under a policy and the requests of a coordinator they know, without any model."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgvc_core.privacy.accountant import PrivacyEvent, take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.keys import new_key, public_text, read_public
from fgvc_core.protocol.messages import Reply, Request, new_nonce, unseal
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

COORDINATOR = new_key()
STEPS = """
name = "steps"
[federation]
rounds = 3
[privacy]
epsilon = 4.0
method = "gradients"
sampling_rate = 0.25
steps = 2
score_share = 0.05
"""
SUMS = """
name = "sums"
[model]
head = "subspace"
train = "head"
[federation]
rounds = 1
[privacy]
epsilon = 2.0
method = "class-sums"
"""
OPEN = """
name = "open"
[federation]
rounds = 3
"""


def steps(*changes: str) -> Recipe:
    """Three rounds of two private steps, and noisy scores at the end."""
    return parse_recipe(STEPS, changes)


def sums(*changes: str) -> Recipe:
    """One release of class sums."""
    return parse_recipe(SUMS, changes)


def unprotected(*changes: str) -> Recipe:
    """Three rounds without differential privacy."""
    return parse_recipe(OPEN, changes)


def make_site(folder: Path, name: str = "site-1", units: int = 40, **policy) -> Site:
    """A fresh home under a policy; by default differential privacy is required, without a cap."""
    return make_home(
        folder / name,
        name=name,
        coordinator=public_text(COORDINATOR.public_key()),
        cache=folder / "cache",
        units=units,
        policy=Policy(**{"privacy": "required", "epsilon_cap": "none", **policy}),
    )


def with_policy(site: Site, **policy) -> Site:
    """The same home under another policy; without a cap where none is named."""
    changed = Policy(**{"epsilon_cap": "none", **policy})
    write_settings(site.home, site.settings.model_copy(update={"policy": changed}))
    return Site.open(site.home)


def with_data(site: Site, **changes) -> Site:
    """The same home with other lines about its data."""
    data = site.settings.data.model_copy(update=changes)
    write_settings(site.home, site.settings.model_copy(update={"data": data}))
    return Site.open(site.home)


def request(of: Recipe, kind: str, run: str = "run-1", round_: int = 1, **changes) -> Request:
    """A request with a nonce of its own."""
    same = {"kind": kind, "run": run, "round": round_, "nonce": new_nonce()}
    return Request(**{**same, "site": "site-1", "recipe_digest": of.digest, **changes})


def announce(site: Site, recipe: Recipe, run: str = "run-1", **changes):
    """The roll call of a run."""
    body = request(recipe, "roll_call", run, 0, **changes)
    return Gate(site).announce(body, recipe)


@dataclass
class Work:
    """Draws a payload afresh each time it is called, and counts the calls."""

    asked: Request
    shape: tuple[int, ...] = (2, 3)
    calls: int = 0

    def __call__(self) -> Payload:
        self.calls += 1
        noise = np.frombuffer(os.urandom(4 * int(np.prod(self.shape))), dtype=np.uint32)
        fields = {
            name: getattr(self.asked, name)
            for name in ("kind", "run", "round", "site", "recipe_digest")
        }
        fields |= {"code": "ok", "version": "0", "examples": 40}
        if self.asked.kind == "score":
            drawn = {"examples": float(noise[0]), "correct": float(noise[1])}
            return Payload({**fields, "noisy_scores": drawn}, {})
        drawn = noise.astype(np.float32).reshape(self.shape)
        if self.asked.kind == "release":
            return Payload(fields, {self.asked.phase: drawn})
        return Payload(fields, {"w": drawn, "gain": np.array(drawn[0, 0])})

    def specs(self) -> dict[str, TensorSpec]:
        """What its tensors will be."""
        if self.asked.kind == "score":
            return {}
        whole = TensorSpec("float32", self.shape)
        if self.asked.kind == "release":
            return {self.asked.phase: whole}
        return {"w": whole, "gain": TensorSpec("float32", ())}


def event_for(recipe: Recipe, body: Request) -> PrivacyEvent:
    """What a request costs under the recipe."""
    wanted = {"train": "step", "score": "scores"}.get(body.kind, body.phase)
    planned = {e.purpose: e for e in plan_for(recipe.privacy, recipe.federation.rounds)}
    return take(planned[wanted], recipe.privacy.steps if wanted == "step" else 1)


def answer(site: Site, recipe: Recipe, body: Request, work=None, event=None) -> Departure:
    """What the gate lets out for a request."""
    work = work or Work(body)
    event = event or event_for(recipe, body)
    specs = work.specs() if isinstance(work, Work) else None
    return Gate(site).protected_round(body, recipe, event, work, specs)


def opened(site: Site, departure: Departure) -> Reply:
    """A reply, its signature and its tensors checked."""
    digests = {name: tensor.digest() for name, tensor in departure.tensors.items()}
    return unseal(Reply, departure.sealed, read_public(site.public_key), digests)


def ledger_of(site: Site) -> Ledger:
    """The site's ledger."""
    return Ledger(site.home, site.data_binding, site.name)


def kinds(site: Site) -> list[str]:
    """The kinds of all entries in the ledger's file, torn lines left out."""
    found = []
    for line in (site.home / "ledger.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line)["kind"])
        except ValueError:
            continue
    return found
