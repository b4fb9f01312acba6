"""Running statistics of an update beside those that its site received."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fgvc_core.protocol.settings import FederationSettings
from fieldmark.server.screening.comparison import (
    LARGEST,
    UnsoundUpdate,
    UpdateHistory,
    change_of_statistics,
    impossible_statistic,
)
from fieldmark.server.strategies import SoundReply

MEAN, VAR = "bn.running_mean", "bn.running_var"
WEIGHTS = np.linspace(-1, 1, 400, dtype=np.float32)
SENT = {
    "w": np.zeros(400, np.float32),
    MEAN: np.zeros(4, np.float32),
    VAR: np.ones(4, np.float32),
}


def update(seed=0, **changes):
    generator = np.random.default_rng(seed)
    return {
        "w": WEIGHTS + generator.normal(0, 0.01, 400).astype(np.float32),
        MEAN: generator.normal(0, 0.2, 4).astype(np.float32),
        VAR: generator.uniform(0.7, 1.4, 4).astype(np.float32),
        **{f"bn.{name}": np.array(values, np.float32) for name, values in changes.items()},
    }


def history(rounds):
    found = UpdateHistory(FederationSettings())
    for number in range(rounds):
        found.begin(SENT, lambda _: 1.0)
        for site in range(5):
            found.judge(SoundReply(f"s{site}", 50, update(10 * number + site)))
        found.close({**SENT, "w": WEIGHTS})
    found.begin(SENT, lambda _: 1.0)
    return found


def verdict(found, tensors):
    try:
        found.judge(SoundReply("x", 50, tensors))
    except UnsoundUpdate as error:
        return error.what
    return "sound"


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "sound"),
        ({"running_var": [1, 1, 1, 1e30]}, "'bn.running_var' reaches 1e+30, above 1000"),
        ({"running_var": [1, 1, 1, -1e-6]}, "'bn.running_var' is negative: -1e-06"),
        ({"running_mean": [0, 0, -1e4, 0]}, "'bn.running_mean' reaches 1e+04, above 1000"),
    ],
    ids=["sound", "huge variance", "negative variance", "huge mean"],
)
def test_a_statistic_that_cannot_be_is_refused_in_any_round(rounds, changes, said):
    assert said in verdict(history(rounds), update(99, **changes))


def test_a_change_unlike_that_of_earlier_rounds_is_refused_with_its_figures():
    far = update(99, running_var=[900, 900, 900, 900])
    assert verdict(history(0), far) == "sound"
    found = history(2)
    assert "change of running statistics is 1798" in verdict(found, far)
    again = UpdateHistory(found.settings, json.loads(json.dumps(found.kept)), found.direction)
    again.begin(SENT, lambda _: 1.0)
    assert verdict(again, far) == verdict(found, far)


def test_who_was_refused_for_its_statistics_does_not_widen_the_bound():
    found = history(2)
    before = json.dumps(found.kept["statistics"])
    for seed in range(20):
        assert verdict(found, update(seed, running_var=[900, 1, 1, 1])) != "sound"
    found.close(SENT)
    assert json.dumps(found.kept["statistics"]) == before


def test_the_change_is_measured_in_the_units_of_each_layer():
    small = {MEAN: np.zeros(2, np.float32), VAR: np.full(2, 1e-4, np.float32)}
    moved = {MEAN: np.array([0.03, 0], np.float32), VAR: np.array([5e-4, 1e-4], np.float32)}
    assert change_of_statistics(small, moved) == pytest.approx(5, rel=1e-5)  # 3 and 4
    assert change_of_statistics({"w": WEIGHTS}, {"w": WEIGHTS}) is None


values = arrays(np.float32, 4, elements=st.floats(-(2.0**120), 2.0**120, width=32))


@given(sent=values, variance=values)
@settings(max_examples=60, deadline=None)
def test_whatever_finite_values_come_the_verdict_is_a_number_or_a_refusal(sent, variance):
    received = {**SENT, VAR: np.abs(sent)}
    answer = {**SENT, VAR: variance}
    wrong = impossible_statistic(received, answer)
    if wrong is None:
        assert variance.min() >= 0
        assert float(variance.max()) <= LARGEST * max(1.0, float(received[VAR].max()))
    assert np.isfinite(change_of_statistics(received, answer))


@pytest.mark.slow
def test_no_honest_site_of_a_batchnorm_model_is_refused_and_a_liar_is():
    """Five sites of unlike brightness, ResNet-18 at 32 px from random weights, three rounds."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=4)
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    sent = {n: model.state_dict()[n].numpy().copy() for n in names}
    classes_CHW = torch.randn(4, 3, 32, 32)
    found = UpdateHistory(FederationSettings())
    for _ in range(3):
        found.begin(sent, lambda _: 0.05)
        replies = []
        for site, shift in enumerate((0.0, 0.2, -0.3, 0.5, 1.0)):
            model.load_state_dict({n: torch.from_numpy(t.copy()) for n, t in sent.items()}, False)
            optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            # Unlike numbers of steps, too.
            for _ in range(1 + 2 * site):
                labels_N = torch.randint(0, 4, (16,))
                images_NCHW = (classes_CHW[labels_N] + torch.randn(16, 3, 32, 32)) * (1 + shift)
                loss = torch.nn.functional.cross_entropy(model(images_NCHW + shift), labels_N)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            replies.append({n: model.state_dict()[n].numpy().copy() for n in names})
            found.judge(SoundReply(f"s{site}", 16, replies[-1]))
        lie = {n: t * 30 if n.endswith("running_var") else t for n, t in replies[0].items()}
        last = verdict(found, lie)
        huge = {n: t * np.float32(1e30) if n.endswith("_var") else t for n, t in lie.items()}
        assert "reaches" in verdict(found, huge)
        found._pending.pop("x", None)
        mean = {n: np.mean([reply[n] for reply in replies], axis=0) for n in names}
        found.close(mean)
        sent = mean
    assert "change of running statistics" in last
