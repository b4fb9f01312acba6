"""A whitened head, from releases of sites without a network: their vectors are made up."""

import numpy as np
import pytest
import torch

from fgvc_core.errors import PolicyRefusal
from fgvc_core.flower.records import from_array_record
from fgvc_core.models.heads import WhitenedHead
from fgvc_core.privacy.class_sums import centre_sum, counted_sums, sums_bound, unit_vectors
from fgvc_core.privacy.noise import make_grid, release
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.whitening import first_bound, scatter_weight
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import TensorSpec, unpack_all
from fieldmark.server.rounds.closed_form import ClosedForm
from fieldmark.server.strategies import SoundReply

CLASSES, P, UNITS = 8, 12, 400
TEXT = """
[data]
val_fraction = 0.0
[model]
head = "whitened"
train = "head"
[federation]
rounds = 1
[privacy]
epsilon = 20.0
scatter_share = 0.05
method = "class-sums"
"""
WHITENED = parse_recipe(TEXT)
PLAIN = parse_recipe(TEXT, ["model.head=subspace", "privacy.scatter_share=0.0"])
# One direction in which pictures of every class differ a lot: what whitening takes out.
SPREAD = np.diag([2.0, *np.full(P - 1, 0.25)])


def site(seed):
    random = np.random.default_rng(seed)
    means = np.random.default_rng(0).standard_normal((CLASSES, P)) * 0.5
    labels = random.integers(0, CLASSES, UNITS)
    return unit_vectors(means[labels] + random.standard_normal((UNITS, P)) @ SPREAD + 1.0), labels


SITES = {f"site-{n}": site(n) for n in range(1, 4)}
START = {
    "head.centre": np.zeros(P, np.float32),
    "head.weight": np.zeros((CLASSES, P), np.float32),
    "head.bias": np.zeros(CLASSES, np.float32),
    "head.whitening": np.eye(P, dtype=np.float32),
}


class Sites:
    """Sites that release what a recipe's plan says."""

    def __init__(self, recipe):
        self.recipe, self.weight = recipe, scatter_weight(recipe.privacy)
        self.noise = {e.purpose: e.noise_multiplier for e in plan_for(recipe.privacy, 1)}
        whitened = recipe.model.head == "whitened"
        self.start = {n: a for n, a in START.items() if whitened or n != "head.whitening"}
        self.kept = []

    def ask(self, stage, arrays, specs):
        shapes = {name: TensorSpec("float32", array.shape) for name, array in self.start.items()}
        model = unpack_all(from_array_record(arrays), shapes)
        units, noise = np.arange(UNITS), self.noise[stage.name]
        for name, (vectors, labels) in SITES.items():
            if stage.name == "centre":
                sums, bound = centre_sum(vectors, units, self.weight), first_bound(self.weight)
            else:
                around = vectors - model["head.centre"]
                around = unit_vectors(around @ model.get("head.whitening", np.eye(P)).T)
                sums = counted_sums(around, labels, units, CLASSES, 0.1)
                bound = sums_bound(0.1)
            released = release(sums, make_grid(bound, sums.size, noise))
            assert released.shape == specs[stage.name].shape
            yield SoundReply(name, UNITS, {stage.name: released.astype(np.float32)})

    def run(self, fixed=None):
        def leave_out(stage, refused):
            assert not refused, refused

        closed = ClosedForm(self.recipe, dict.fromkeys(SITES, UNITS), CLASSES, first=fixed)
        tensors, arrived = closed.run(self.start, self.ask, leave_out, self.kept.append)
        assert arrived == 3
        return tensors


def right(tensors):
    head = WhitenedHead(torch.eye(P), CLASSES)
    head.load_state_dict({n.removeprefix("head."): torch.from_numpy(a) for n, a in tensors.items()})
    vectors, labels = site(99)
    with torch.no_grad():
        found = head(torch.from_numpy(vectors.astype(np.float32))).argmax(dim=1).numpy()
    return (found == labels).mean()


def test_a_whitened_head_comes_from_two_messages_and_beats_one_that_is_not():
    sites = Sites(WHITENED)
    tensors = sites.run()
    assert set(tensors) == set(START)
    assert len(sites.kept) == 1
    values = np.linalg.eigvalsh(tensors["head.whitening"])
    assert values[0] < 0.8 * values[-1], "the strong direction is made smaller"
    plain = {**Sites(PLAIN).run(), "head.whitening": np.eye(P, dtype=np.float32)}
    assert right(tensors) > right(plain) + 0.02
    assert right(plain) > 2 / CLASSES


def test_what_was_fixed_before_a_crash_gives_the_same_center_and_whitening():
    first, again = Sites(WHITENED), Sites(WHITENED)
    tensors = first.run()
    other = again.run(np.array(first.kept[0].tolist()))
    assert again.kept == []
    for name in ("head.centre", "head.whitening"):
        assert tensors[name].tobytes() == other[name].tobytes()


@pytest.mark.parametrize("change", ["model.head=subspace", "privacy.scatter_share=0.0"])
def test_a_whitened_head_and_a_scatter_belong_together(change):
    with pytest.raises(PolicyRefusal, match="do not go together"):
        parse_recipe(TEXT, [change])
