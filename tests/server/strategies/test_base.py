import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fgvc_core.wire.arrays
from fgvc_core.components import STRATEGIES
from fgvc_core.flower.internals import enter_run
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.wire.arrays import PIECE
from fieldmark.server.strategies import Aggregation, RunningMean, SoundReply, make_strategy

values = hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e3, 1e3, width=32))
updates = st.lists(st.tuples(values, st.integers(1, 10_000)), min_size=1, max_size=8)


def fold(pairs):
    mean = RunningMean()
    for array, weight in pairs:
        mean.fold({"w": array}, weight)
    return mean.tensors["w"]


@given(updates)
def test_the_running_mean_is_the_weighted_mean(pairs):
    expected = np.average([a for a, _ in pairs], axis=0, weights=[w for _, w in pairs])
    np.testing.assert_allclose(fold(pairs), expected, rtol=1e-4, atol=1e-2)


@given(values, st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_equal_updates_give_themselves_to_the_bit(array, weights):
    assert np.array_equal(fold([(array, w) for w in weights]), array)


def test_float32_stays_float32_and_blocks_meet_without_a_seam():
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(2 * PIECE + 7, dtype=np.float32) for _ in range(4)]
    mean = fold([(a, 1) for a in arrays])
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.mean(arrays, axis=0), atol=1e-6)


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(2 * PIECE + 7, dtype=np.float32) for _ in range(3)]
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(fgvc_core.wire.arrays, "available", lambda cores=cores: cores)
        found.append(fold([(a, w) for w, a in enumerate(arrays, 1)]).tobytes())
    assert found[0] == found[1]


def test_folding_does_not_change_what_it_is_given():
    one, two = np.ones(4, np.float32), np.zeros(4, np.float32)
    fold([(one, 1), (two, 1)])
    assert one.sum() == 4
    assert two.sum() == 0


@settings(max_examples=20)
@given(updates)
def test_it_agrees_with_flowers_own_average(pairs):
    enter_run(1)
    replies, sound = [], []
    for number, (array, weight) in enumerate(pairs):
        ask = Message(RecordDict(), dst_node_id=number + 2, message_type="train")
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(array)}),
                "metrics": MetricRecord({"num-examples": weight}),
            }
        )
        replies.append(Message(content, reply_to=ask))
        sound.append(SoundReply(str(number), weight, {"w": array}))
    theirs, _ = FedAvg().aggregate_train(1, replies)
    ours = make_strategy(FederationSettings()).aggregate(iter(sound), Aggregation(1, {}))
    np.testing.assert_allclose(ours["w"], theirs["w"].numpy(), rtol=1e-4, atol=1e-2)


def test_no_reply_means_no_model():
    assert make_strategy(FederationSettings()).aggregate(iter([]), Aggregation(1, {})) is None


def test_only_fedprox_pulls_towards_the_received_model():
    for name in STRATEGIES.built_in:
        strategy = make_strategy(FederationSettings(strategy=name, proximal_mu=0.25))
        assert strategy.proximal_mu == (0.25 if name == "fedprox" else 0.0)


def test_the_layout_in_memory_of_an_update_does_not_matter():
    one, two = (np.asfortranarray(np.full((3, 4), v, np.float32)) for v in (1.0, 3.0))
    assert (fold([(one, 1), (two, 1)]) == 2).all()


def test_the_same_updates_in_the_same_order_give_the_same_bits():
    generator = np.random.default_rng(1)
    pairs = [(generator.standard_normal(1000, dtype=np.float32), 7 + n) for n in range(9)]
    assert fold(pairs).tobytes() == fold(pairs).tobytes()
