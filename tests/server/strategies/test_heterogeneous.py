"""SCAFFOLD and FedNova against the papers' own formulas, on problems small enough to solve."""

import numpy as np
import pytest

from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy


def started(name, train=None, model=None, sites=2):
    strategy = make_strategy(FederationSettings(strategy=name), train)
    strategy.begin({n: TensorSpec("float32", a.shape) for n, a in model.items()}, sites)
    return strategy


def test_fednova_divides_by_the_steps_and_multiplies_by_their_mean():
    train = TrainSettings(epochs=2, batch_size=10, optimizer="adam")
    model = {"w": np.zeros(3, np.float32)}
    strategy = started("fednova", train, model)
    # 20 and 100 examples: 4 and 20 steps; weights 1/6 and 5/6.
    one, two = np.full(3, 4, np.float32), np.full(3, 40, np.float32)
    replies = [SoundReply("a", 20, {"w": one}), SoundReply("b", 100, {"w": two})]
    found = strategy.aggregate(iter(replies), Aggregation(1, model))
    effective = 4 / 6 + 20 * 5 / 6
    expected = effective * (1 / 6 * one / 4 + 5 / 6 * two / 20)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


def test_fednova_of_equal_sites_is_the_mean_and_statistics_are_averaged():
    model = {"w": np.ones(2, np.float32), "bn.running_var": np.ones(2, np.float32)}
    strategy = started("fednova", TrainSettings(), model)
    replies = [SoundReply(str(n), 50, {"w": np.full(2, n, np.float32),
               "bn.running_var": np.full(2, n, np.float32)}) for n in (2.0, 4.0)]  # fmt: skip
    found = strategy.aggregate(iter(replies), Aggregation(1, model))
    np.testing.assert_allclose(found["w"], 3, rtol=1e-6)
    np.testing.assert_allclose(found["bn.running_var"], 3, rtol=1e-6)


def test_momentum_lengthens_steps_as_the_paper_says():
    train = TrainSettings(epochs=1, batch_size=1, optimizer="sgd", momentum=0.5)
    strategy = started("fednova", train, {"w": np.zeros(1, np.float32)})
    # Three steps of momentum 0.5: 1 + 1.5 + 1.75.
    assert strategy.length(3) == pytest.approx(4.25)


def test_scaffolds_variate_moves_by_the_share_of_sites_that_answered():
    model = {"w": np.zeros(2, np.float32)}
    strategy = started("scaffold", None, model, sites=4)
    change = np.array([2, 4], np.float32)
    replies = [SoundReply(s, 10, {"w": change, "control/w": change * k})
               for s, k in (("a", 1), ("b", 3))]  # fmt: skip
    strategy.aggregate(iter(replies), Aggregation(1, model))
    # Two of four sites, mean change 2 x: half of it.
    np.testing.assert_allclose(strategy.beside()["control/w"], change)
    assert set(strategy.expected({"w": TensorSpec("float32", (2,))})) == {"w", "control/w"}
