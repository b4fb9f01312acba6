"""Every loss says whether it couples examples; an experiment checks what it says."""

import pytest
import torch

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.losses.base import Answers, ClassKnowledge, build_loss
from fgvc_core.losses.settings import LossSettings

KNOWN = ClassKnowledge(
    taxonomy=(("a", "x"), ("a", "y"), ("b", "z"), ("b", "w")),
    attributes_KA=torch.tensor(
        [[1.0, 0.0, 0.2], [0.9, 0.1, 0.2], [0.0, 1.0, 0.4], [0.1, 0.8, 1.0]]
    ),
)
CASES = {
    "plain": {},
    "weights": {"balance": "weights"},
    "logits": {"balance": "logits"},
    "public counts": {"balance": "weights", "class_counts": [5, 1, 1, 9]},
    "hierarchy": {"hierarchy": 0.5},
    "semantic": {"semantic": 0.5},
    "triplet": {"triplet": 1.0, "triplet_margin": 1.5},
    "proxy": {"proxy": 1.0},
    "all": {"triplet": 1.0, "hierarchy": 1.0, "semantic": 1.0, "balance": "logits"},
}
COUPLED = {"triplet", "proxy", "all"}
COUNTED = {"weights", "logits", "all"}
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def made(name):
    loss = build_loss(LossSettings.read(CASES[name]))
    return loss.informed(KNOWN).counted(torch.tensor([2, 2, 2, 0]))


def gradients(loss, features_ND, labels_N):
    """Each example's own gradient of the summed loss, through a cosine-like head."""
    features_ND = features_ND.clone().requires_grad_()
    vectors_KD = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    logits_NK = features_ND @ vectors_KD.T
    answers = Answers(logits_NK, features_ND, vectors_KD)
    (loss.of(answers, labels_N) * len(labels_N)).backward()
    return features_ND.grad


@pytest.mark.parametrize("name", CASES)
def test_the_flag_is_what_changing_one_example_shows(name):
    loss = made(name)
    features_ND = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    before = gradients(loss, features_ND, LABELS)
    moved_by = 0.0
    for scale in (3.0, -2.0):
        changed_ND, labels_N = features_ND.clone(), LABELS.clone()
        changed_ND[5] = changed_ND[5].flip(0) * scale
        labels_N[5] = 3
        after = gradients(loss, changed_ND, labels_N)
        moved_by = max(moved_by, float((after[:5] - before[:5]).abs().max()))
    assert (moved_by > 1e-5) == loss.couples_examples == (name in COUPLED)


@pytest.mark.parametrize("name", CASES)
def test_what_couples_or_counts_is_refused_under_privacy(name):
    loss = build_loss(LossSettings.read(CASES[name]))
    if name in COUPLED | COUNTED:
        assert isinstance(loss.refusal(), PolicyRefusal)
        assert "refused under [privacy]" in loss.refusal().what
    else:
        assert loss.refusal() is None


@pytest.mark.parametrize("name", sorted(set(CASES) - COUPLED))
def test_the_mean_of_single_losses_is_the_loss(name):
    loss = made(name)
    logits_NK = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    each_N = loss.per_example(logits_NK, LABELS)
    assert each_N.shape == (6,)
    torch.testing.assert_close(each_N.mean(), loss(logits_NK, LABELS))


@pytest.mark.parametrize("name", sorted(set(CASES) - COUPLED))
def test_one_hot_shares_are_labels(name):
    loss = made(name)
    logits_NK = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    shares_NK = torch.nn.functional.one_hot(LABELS, 4).float()
    torch.testing.assert_close(loss(logits_NK, shares_NK), loss(logits_NK, LABELS))


@pytest.mark.parametrize("setting", ["hierarchy", "semantic"])
def test_a_loss_that_needs_to_know_the_classes_says_so(setting):
    loss = build_loss(LossSettings.read({setting: 1.0}))
    with pytest.raises(ConfigurationError, match=f"loss.{setting} > 0, but the data set has no"):
        loss.informed(ClassKnowledge())
    with pytest.raises(TypeError, match="informed before"):
        loss(torch.zeros(1, 4), torch.tensor([0]))
