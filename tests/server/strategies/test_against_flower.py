"""Our strategies on a stream against Flower's own on a list: the same numbers, in float32."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy

SHAPES = {"b": (5,), "w": (40, 7)}
SITES = 9
OURS = {
    "fedavg": FedAvg(),
    "fedavgm": FedAvgM(server_learning_rate=0.7, server_momentum=0.8),
    "fedadam": FedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
    "fedyogi": FedYogi(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
    "fedadagrad": FedAdagrad(eta=0.05, tau=1e-2),
    "fedmedian": FedMedian(),
    "trimmed-mean": FedTrimmedAvg(beta=0.25),
    "krum": Krum(num_malicious_nodes=2),
    "multi-krum": MultiKrum(num_malicious_nodes=2, num_nodes_to_select=SITES - 2),
}
SETTINGS = {
    "fedavgm": {"server_lr": 0.7, "server_momentum": 0.8},
    "fedadam": {"server_lr": 0.05, "server_beta1": 0.8, "server_beta2": 0.95, "server_tau": 1e-2},
    "fedyogi": {"server_lr": 0.05, "server_beta1": 0.8, "server_beta2": 0.95, "server_tau": 1e-2},
    "fedadagrad": {"server_lr": 0.05, "server_tau": 1e-2},
    "trimmed-mean": {"byzantine_share": 0.25},
    "krum": {"byzantine_share": 0.25},
    "multi-krum": {"byzantine_share": 0.25},
}


def ours(name, **changes):
    values = {"strategy": name, "spill_mb": 1.0, **SETTINGS.get(name, {}), **changes}
    strategy = make_strategy(FederationSettings(**values))
    strategy.begin({n: TensorSpec("float32", s) for n, s in SHAPES.items()}, SITES)
    return strategy


def drawn(seed, around):
    generator = np.random.default_rng(seed)
    return [
        (
            {n: around[n] + generator.normal(0, 0.1, s).astype(np.float32)
             for n, s in SHAPES.items()},
            int(generator.integers(1, 300)),
        )
        for _ in range(SITES)
    ]  # fmt: skip


def as_messages(replies):
    messages = []
    for number, (tensors, weight) in enumerate(replies):
        ask = Message(RecordDict(), dst_node_id=number + 2, message_type="train")
        arrays = ArrayRecord({n: Array(a) for n, a in tensors.items()})
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})}
        messages.append(Message(RecordDict(content), reply_to=ask))
    return messages


def as_stream(replies):
    return iter([SoundReply(f"s{i}", w, t) for i, (t, w) in enumerate(replies)])


@pytest.mark.parametrize("name", OURS)
def test_three_rounds_end_where_flowers_do(name):
    enter_run(1)
    mine = ours(name)
    theirs = OURS[name]
    theirs.sample = None
    model = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    for round_ in (1, 2, 3):
        record = to_array_record(pack_all(model))
        # Flower's own would sample nodes here: what it remembers is all that is wanted.
        theirs.current_arrays = (
            record
            if isinstance(theirs, FedAvgM)
            else {n: array.numpy() for n, array in record.items()}
        )
        replies = drawn(round_, model)
        expected, _ = theirs.aggregate_train(round_, as_messages(replies))
        found = mine.aggregate(as_stream(replies), Aggregation(round_, model))
        for tensor in SHAPES:
            assert found[tensor].dtype == np.float32
            np.testing.assert_allclose(
                found[tensor], expected[tensor].numpy(), rtol=2e-5, atol=2e-6
            )
        model = found


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold"])
def test_what_a_strategy_remembers_goes_on_to_the_bit(name):
    enter_run(1)

    def play(strategy, rounds, model, resume=None):
        for round_ in rounds:
            if resume == round_:
                state = {n: a.copy() for n, a in strategy.state().items()}
                strategy = ours(name)
                strategy.restore(state)
            replies = drawn(round_, model)
            if name == "scaffold":
                replies = [({**t, **{f"control/{n}": a * 0.1 for n, a in t.items()}}, w)
                           for t, w in replies]  # fmt: skip
            model = strategy.aggregate(as_stream(replies), Aggregation(round_, model))
        return model, strategy.state()

    start = {n: np.ones(s, np.float32) for n, s in SHAPES.items()}
    whole, remembered = play(ours(name), range(1, 5), start)
    again, resumed = play(ours(name), range(1, 5), start, resume=3)
    assert remembered
    for one, two in ((whole, again), (remembered, resumed)):
        assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in two.items()}


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "scaffold"])
def test_a_round_without_its_quorum_changes_nothing_that_is_remembered(name):
    enter_run(1)
    strategy = ours(name)
    model = {n: np.ones(s, np.float32) for n, s in SHAPES.items()}
    before = {n: a.tobytes() for n, a in strategy.state().items()}
    replies = drawn(1, model)
    if name == "scaffold":
        replies = [({**t, **{f"control/{n}": a for n, a in t.items()}}, w) for t, w in replies]
    round_ = Aggregation(1, model, needed=SITES + 1)
    assert strategy.aggregate(as_stream(replies), round_) is None
    assert {n: a.tobytes() for n, a in strategy.state().items()} == before


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_running_variance_is_averaged_and_never_optimised(name):
    enter_run(1)
    strategy = ours(name, server_lr=5.0)
    model = {"bn.running_var": np.full(3, 0.01, np.float32), "w": np.ones(3, np.float32)}
    replies = [
        ({"bn.running_var": np.full(3, v, np.float32), "w": np.zeros(3, np.float32)}, 1)
        for v in (0.001, 0.003)
    ]
    found = strategy.aggregate(as_stream(replies), Aggregation(1, model))
    np.testing.assert_allclose(found["bn.running_var"], 0.002, rtol=1e-6)
    assert (found["w"] < 0.5).all()
