import copy
from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.training.examples import FeatureExamples
from fgvc_core.training.loop import Stretch, train_passes
from fgvc_core.training.settings import TrainSettings

PLAIN = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "schedule": "constant", "batch_size": 64}
LOSS = build_loss(LossSettings(label_smoothing=0.1))


@pytest.fixture(scope="module")
def whole():
    """A small classifier of which all trains, and pictures as its own examples."""
    model = build_classifier(ModelSettings(backbone="fieldmark_nano"), 3, 32, 0)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(5))
    return model


class Images:
    """Pictures that are never augmented, and a record of which were asked for."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        self.images_NCHW = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels_N = torch.arange(count) % 3
        self.asked = []

    def __len__(self):
        return len(self.labels_N)

    def lesson(self, model, positions, generator):
        assert model.training
        self.asked.append(positions.tolist())
        return model.embed(self.images_NCHW[positions]), self.labels_N[positions]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model, examples):
    model = copy.deepcopy(model).train()
    LOSS(model(examples.images_NCHW), examples.labels_N).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def trained(model, examples, mu=0.0, seed=0, **settings):
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    chosen = TrainSettings(**{**PLAIN, **settings})
    outcome = train_passes(model, examples, LOSS, chosen, Stretch(1, 1), generator, mu)
    return model, outcome


def test_one_step_of_sgd_moves_every_parameter_down_its_gradient(whole):
    examples = Images(6)
    model, outcome = trained(whole, examples)
    expected = flat(whole) - 0.05 * gradient(whole, examples)
    torch.testing.assert_close(flat(model), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        first = LOSS(whole(examples.images_NCHW), examples.labels_N)
    assert outcome.loss == pytest.approx(float(first), rel=1e-4)
    assert not model.training


def test_the_proximal_pull_is_mu_times_the_distance_from_the_start(whole):
    examples, mu = Images(6), 0.7
    # The pull is nothing at the start: two steps show it.
    once, _ = trained(whole, examples)
    twice, _ = trained(whole, examples, mu=mu, epochs=2)
    pulled = gradient(once, examples) + mu * (flat(once) - flat(whole))
    expected = flat(once) - 0.05 * pulled
    torch.testing.assert_close(flat(twice), expected, rtol=1e-4, atol=1e-5)
    free, _ = trained(whole, examples, epochs=2)
    assert (flat(free) - flat(twice)).norm() > 0


def test_the_same_generator_gives_the_same_weights_and_another_others(whole):
    runs = [trained(whole, Images(9), seed=s, batch_size=4)[0] for s in (1, 1, 2)]
    assert torch.equal(flat(runs[0]), flat(runs[1]))
    assert not torch.equal(flat(runs[0]), flat(runs[2]))


@pytest.mark.parametrize("size", [1e-3, 0.05])
def test_no_step_is_longer_than_the_clipped_gradient_allows(whole, size):
    examples = Images(6)
    assert gradient(whole, examples).norm() > size
    model, _ = trained(whole, examples, clip_norm=size)
    assert (flat(model) - flat(whole)).norm() == pytest.approx(0.05 * size, rel=1e-2)


def test_a_gradient_within_the_bound_is_left_alone(whole):
    examples = Images(6)
    loose, _ = trained(whole, examples, clip_norm=1e6)
    torch.testing.assert_close(flat(loose), flat(trained(whole, examples)[0]))


def test_a_pass_sees_every_example_once_in_another_order_each_time(whole):
    examples = Images(7)
    _, outcome = trained(whole, examples, epochs=2, batch_size=3)
    # The last batch of one is merged into the one before.
    assert [len(positions) for positions in examples.asked] == [3, 4] * 2
    one, two = ([*chain.from_iterable(part)] for part in (examples.asked[:2], examples.asked[2:]))
    assert sorted(one) == sorted(two) == list(range(7))
    assert one != two
    assert outcome.examples == 7


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimiser_learns_and_touches_nothing_frozen(optimizer):
    model = build_classifier(ModelSettings(train="head", attention="none"), 3, 32, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    features_ND = torch.eye(3, 256).repeat(8, 1)
    examples = FeatureExamples(features_ND, np.tile(np.arange(3), 8))
    settings = {"optimizer": optimizer, "lr": 0.1, "epochs": 20, "momentum": 0.9}
    model, outcome = trained(model, examples, **settings)
    assert F.cross_entropy(model.classify(features_ND), examples.labels_N) < 0.8
    assert outcome.loss < np.log(3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("head.")
