"""Whole sites of masked sums and a coordinator they know, without a model: values are given.

Messages, policy, pins, ledger and outbox are the real ones; only what a site would compute from its
pictures is put in its place.
"""

import json

import numpy as np

from fgvc_core.protocol.keys import fingerprint, new_key, public_text, read_public
from fgvc_core.protocol.messages import (
    CohortMember,
    Reply,
    Request,
    new_nonce,
    seal,
    unseal,
)
from fgvc_core.recipe import parse_recipe
from fgvc_core.secure.part import NAME, Scale, opened
from fgvc_core.wire.arrays import TensorSpec, pack_all, unpack
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.chain import read_chain
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.peers import Peers
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.client.stages import masked as stage

RECIPE = """
name = "sums"
[data]
val_fraction = 0.0
[model]
head = "subspace"
train = "head"
[federation]
rounds = 1
[privacy]
epsilon = 4.0
method = "class-sums"
[secure]
least = 3
most = 5
colluding = 1
"""
CLASSES, DIRECTIONS = ("a", "b", "c"), 4
SIZES = {"centre": (DIRECTIONS,), "class-sums": (len(CLASSES), DIRECTIONS + 1)}
MODEL = {"head.centre": np.zeros(DIRECTIONS, np.float32)}
RECEIVED = {
    "head.centre": np.zeros(DIRECTIONS, np.float32),
    "head.weight": np.zeros((len(CLASSES), DIRECTIONS), np.float32),
    "head.bias": np.zeros(len(CLASSES), np.float32),
}
POLICY = {"privacy": "required", "epsilon_cap": 5.0, "secure": "allowed",
          "epsilon_alone_cap": "none"}  # fmt: skip


def given(monkeypatch, values):
    """Put values in the place of what sites would compute: site -> phase -> array.

    Returns:
        The calls: (site, phase), in order.
    """
    calls = []

    def value(job, privacy, received, event):
        calls.append((job.site.name, event.purpose))
        return values[job.site.name][event.purpose]

    monkeypatch.setattr(stage, "checked", lambda job, privacy: RECEIVED)
    monkeypatch.setattr(stage, "_value", value)
    return calls


class Sites:
    """Homes of a federation, with pinned keys, and a coordinator that may be dishonest."""

    def __init__(self, folder, count=5, recipe=RECIPE, overrides=(), pinned=True,
                 simulated=True, **policy):  # fmt: skip
        self.folder, self.key, self.simulated = folder, new_key(), simulated
        self.recipe = parse_recipe(recipe, overrides)
        self.names = [f"site-{number}" for number in range(count)]
        self.homes = {name: self._home(name, {**POLICY, **policy}) for name in self.names}
        self.cohort = self.members(self.names)
        if pinned:
            for name in self.names:
                Peers(self.site(name)).pin_all({m.name: m.fingerprint for m in self.cohort}, "T.")
        self.values = {
            name: {p: np.random.default_rng(n).normal(size=s) for p, s in SIZES.items()}
            for n, name in enumerate(self.names)
        }

    def _home(self, name, policy):
        made = make_home(
            self.folder / name, name=name, coordinator=public_text(self.key.public_key()),
            cache=self.folder / "cache", units=45, policy=Policy(**policy),
            simulated=self.simulated,
        )  # fmt: skip
        if self.simulated:
            (made.home / "rows.json").write_text(json.dumps([1, 2, 3]))
        return made.home

    def site(self, name):
        return Site.open(self.homes[name])

    def members(self, names):
        keys = {name: fingerprint(self.site(name).key.public_key()) for name in names}
        return tuple(CohortMember(name=n, fingerprint=keys[n]) for n in sorted(keys))

    def body(self, name, kind, run="run-1", recipe=None, classes=CLASSES, **changes):
        recipe = recipe or self.recipe
        values = {"kind": kind, "run": run, "round": 1, "site": name, "nonce": new_nonce(),
                  "recipe_digest": recipe.digest}  # fmt: skip
        if kind == "roll_call":
            values |= {"recipe": recipe.announced.to_toml(), "class_names": classes, "round": 0,
                       "site": ""}  # fmt: skip
        return Request(**{**values, **changes})

    def ask(self, name, body, tensors=None):
        """(signed body of the answer, its tensors)."""
        packed = pack_all(tensors or {})
        body = body.model_copy(update={"tensors": {n: t.digest() for n, t in packed.items()}})
        departure = answer(self.homes[name], Incoming(seal(self.key, body), packed))
        digests = {n: tensor.digest() for n, tensor in departure.tensors.items()}
        key = read_public(self.site(name).public_key)
        return unseal(Reply, departure.sealed, key, digests), departure.tensors

    def announce(self, run="run-1", names=None, **changes):
        for name in names or self.names:
            reply, _ = self.ask(name, self.body(name, "roll_call", run, **changes))
            assert reply.code == "ok", reply.reason
        return self

    def ready(self, name, phase="centre", model=None, **changes):
        """The reply of a site to the first trip."""
        changes = {"cohort": self.cohort, "phase": phase, **changes}
        body = self.body(name, "release", **changes)
        return self.ask(name, body, MODEL if model is None else model)[0]

    def all_ready(self, names=None, phase="centre", **changes):
        """The signed texts of sites after the first trip, sorted by name."""
        replies = [self.ready(name, phase, **changes) for name in sorted(names or self.names)]
        assert [reply.code for reply in replies] == ["ok"] * len(replies), replies
        return tuple(reply.ready for reply in replies)

    def send(self, name, ready, phase="centre", **changes):
        """(reply, masked words or None) of a site to the second trip."""
        body = self.body(name, "send", **{"phase": phase, "ready": tuple(ready), **changes})
        reply, tensors = self.ask(name, body)
        if not tensors:
            return reply, None
        assert list(tensors) == [NAME]
        size = int(np.prod(SIZES[phase]))
        return reply, np.array(unpack(tensors[NAME], TensorSpec("uint64", (size,)), NAME))

    def scale(self, phase, count):
        """Scale of a sum over so many sites."""
        from fgvc_core.privacy.planning import plan_for
        from fgvc_core.training.private import sums_bound_of

        plan = plan_for(self.recipe.privacy, 1, self.recipe.sharers)
        noise = next(e.noise_multiplier for e in plan if e.purpose == phase)
        bound = sums_bound_of(phase, self.recipe.privacy)
        adding = self.recipe.secure.rules.adding(count)
        return Scale.of_noise(bound, int(np.prod(SIZES[phase])), noise, adding)

    def opened(self, parts, phase="centre"):
        return opened(parts, self.scale(phase, len(parts)), int(np.prod(SIZES[phase])))

    def entries(self, name):
        found, rest = read_chain((self.homes[name] / "ledger.jsonl").read_bytes())
        assert rest == b""
        return found

    def kinds(self, name):
        return [entry.kind for entry in self.entries(name)]

    def spent(self, name):
        site = self.site(name)
        ledger = Ledger(site.home, site.data_binding, site.name)
        return ledger.total(1e-5)[0], ledger.total_alone(1e-5)[0]


def files_of(home):
    """Every byte of every file of a home, by path."""
    return {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
