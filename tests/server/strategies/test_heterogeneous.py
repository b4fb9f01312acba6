"""SCAFFOLD and FedNova against the papers' own formulas, on problems small enough to solve."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.strategies import SoundReply, make_strategy


def started(name, train=None, model=None, sites=2):
    enter_run(1)
    strategy = make_strategy(FederationSettings(strategy=name), train)
    strategy.compose = lambda round_, arrays, config: []
    strategy.begin({n: TensorSpec("float32", a.shape) for n, a in model.items()}, sites)
    list(strategy.configure_train(1, to_array_record(pack_all(model)), ConfigRecord(), None))
    return strategy


def test_fednova_divides_by_the_steps_and_multiplies_by_their_mean():
    train = TrainSettings(epochs=2, batch_size=10, optimizer="adam")
    x = np.zeros(3, np.float32)
    strategy = started("fednova", train, {"w": x})
    # 20 and 100 examples: 4 and 20 steps; weights 1/6 and 5/6.
    one, two = np.full(3, 4, np.float32), np.full(3, 40, np.float32)
    replies = [SoundReply("a", 20, {"w": one}), SoundReply("b", 100, {"w": two})]
    found, _ = strategy.aggregate_train(1, iter(replies))
    effective = 4 / 6 + 20 * 5 / 6
    expected = effective * (1 / 6 * one / 4 + 5 / 6 * two / 20)
    np.testing.assert_allclose(found["w"].numpy(), expected, rtol=1e-6)


def test_fednova_of_equal_sites_is_the_mean_and_statistics_are_averaged():
    model = {"w": np.ones(2, np.float32), "bn.running_var": np.ones(2, np.float32)}
    strategy = started("fednova", TrainSettings(), model)
    replies = [SoundReply(str(n), 50, {"w": np.full(2, n, np.float32),
               "bn.running_var": np.full(2, n, np.float32)}) for n in (2.0, 4.0)]  # fmt: skip
    found, _ = strategy.aggregate_train(1, iter(replies))
    np.testing.assert_allclose(found["w"].numpy(), 3, rtol=1e-6)
    np.testing.assert_allclose(found["bn.running_var"].numpy(), 3, rtol=1e-6)


def test_momentum_lengthens_steps_as_the_paper_says():
    train = TrainSettings(epochs=1, batch_size=1, optimizer="sgd", momentum=0.5)
    strategy = started("fednova", train, {"w": np.zeros(1, np.float32)})
    # Three steps of momentum 0.5: 1 + 1.5 + 1.75.
    assert strategy.length(3) == pytest.approx(4.25)


def test_scaffolds_variate_moves_by_the_share_of_sites_that_answered():
    strategy = started("scaffold", None, {"w": np.zeros(2, np.float32)}, sites=4)
    change = np.array([2, 4], np.float32)
    replies = [SoundReply(s, 10, {"w": change, "control/w": change * k})
               for s, k in (("a", 1), ("b", 3))]  # fmt: skip
    strategy.aggregate_train(1, iter(replies))
    # Two of four sites, mean change 2 x: half of it.
    np.testing.assert_allclose(strategy.beside()["control/w"], change)
    assert set(strategy.expected({"w": TensorSpec("float32", (2,))})) == {"w", "control/w"}
