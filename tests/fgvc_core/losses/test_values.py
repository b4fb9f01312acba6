"""Each loss against its value worked out by hand."""

import math

import pytest
import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers
from fgvc_core.losses.classification import (
    BalancedCrossEntropy,
    HierarchicalCrossEntropy,
    SemanticCrossEntropy,
    class_weights,
    soft_targets,
)
from fgvc_core.losses.metric import BatchHardTriplet, ProxyAnchor


def at(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def between(one, other):
    """Distance of two unit vectors by their angles in degrees."""
    return 2 * math.sin(math.radians(abs(one - other)) / 2)


def test_batch_hard_triplets_by_hand():
    features_ND = at(0, 30, 60) * torch.tensor([[2.0], [1.0], [5.0]])
    answers = Answers(torch.zeros(3, 2), features_ND)
    # Anchors 0 and 30 degrees are of one class, 60 of the other and has no positive.
    terms = [between(0, 30) - between(0, 60) + 1, between(30, 0) - between(30, 60) + 1]
    loss = BatchHardTriplet(1.0).of(answers, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(sum(terms) / 2, rel=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0], [1]])
def test_triplets_without_a_pair_cost_nothing_and_have_a_gradient_of_zero(labels):
    features_ND = at(*range(10, 10 * len(labels) + 1, 10)).requires_grad_()
    loss = BatchHardTriplet(0.5).of(Answers(torch.zeros(3, 2), features_ND), torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert features_ND.grad is None or not features_ND.grad.any()


def test_proxy_anchor_by_hand():
    features_ND, proxies_KD = at(0, 40), at(0, 90)
    answers = Answers(torch.zeros(2, 2), features_ND, proxies_KD)
    cosine = [[math.cos(math.radians(abs(a - p))) for p in (0, 90)] for a in (0, 40)]
    alpha, margin = 4.0, 0.1
    positive = math.log1p(sum(math.exp(-alpha * (c[0] - margin)) for c in cosine))
    negative = math.log1p(sum(math.exp(alpha * (c[1] + margin)) for c in cosine)) / 2
    loss = ProxyAnchor(margin, alpha).of(answers, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(positive + negative, rel=1e-5)


def test_proxies_are_the_heads_own_vectors_and_learn():
    proxies_KD = torch.nn.Parameter(at(10, 80).float())
    answers = Answers(torch.zeros(2, 2), at(0, 40).float(), proxies_KD)
    ProxyAnchor(0.1, 8.0).of(answers, torch.tensor([0, 1])).backward()
    assert proxies_KD.grad is not None
    assert proxies_KD.grad.abs().sum() > 0
    with pytest.raises(ConfigurationError, match="needs a head with a vector for each class"):
        ProxyAnchor(0.1, 8.0).of(Answers(torch.zeros(2, 2), at(0, 40)), torch.tensor([0, 1]))


def test_class_weights_are_inverse_effective_numbers():
    weights_K = class_weights(torch.tensor([1, 10, 0]), 0.9)
    ratio = (1 - 0.9**10) / (1 - 0.9)
    assert (weights_K[0] / weights_K[1]).item() == pytest.approx(ratio)
    assert weights_K[2] == 0
    assert (weights_K[0] + 10 * weights_K[1]).item() == pytest.approx(11)
    assert class_weights(torch.tensor([3, 7]), 0.0).tolist() == pytest.approx([1.0, 1.0])


def test_weighted_and_adjusted_cross_entropies_by_hand():
    logits_NK, labels_N = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    counts_K = torch.tensor([3, 1])
    weights_K = class_weights(counts_K, 0.99)
    weighted = BalancedCrossEntropy("weights", 0.0, 0.99, 1.0).counted(counts_K)
    expected = math.log(2) * float(weights_K.sum()) / 2
    assert weighted(logits_NK, labels_N).item() == pytest.approx(expected, rel=1e-6)
    adjusted = BalancedCrossEntropy("logits", 0.0, 0.0, 1.0).counted(counts_K)
    # With equal logits the adjusted softmax is the smoothed share itself: 4/6 and 2/6.
    expected = -(math.log(4 / 6) + math.log(2 / 6)) / 2
    assert adjusted(logits_NK, labels_N).item() == pytest.approx(expected, rel=1e-6)


def test_a_prior_takes_back_a_part_of_the_shares_over_all_sites_by_hand():
    logits_NK, labels_N = torch.zeros(2, 2), torch.tensor([0, 1])
    loss = BalancedCrossEntropy("logits", 0.0, 0.0, 1.0, prior=0.5)
    shares_K = torch.tensor([0.9, 0.1], dtype=torch.float64)
    odds = (4 / 6) / math.sqrt(0.9), (2 / 6) / math.sqrt(0.1)
    expected = -sum(math.log(one / sum(odds)) for one in odds) / 2
    found = loss.counted(torch.tensor([3, 1]), shares_K)(logits_NK, labels_N).item()
    assert found == pytest.approx(expected, rel=1e-6)
    # Alone, a site's own shares are those of all: half of their log is left.
    odds = math.sqrt(4 / 6), math.sqrt(2 / 6)
    expected = -sum(math.log(one / sum(odds)) for one in odds) / 2
    found = loss.counted(torch.tensor([3, 1]))(logits_NK, labels_N).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_shares_over_all_sites_can_adjust_in_place_of_a_sites_own_by_hand():
    logits_NK, labels_N = torch.zeros(2, 2), torch.tensor([0, 1])
    loss = BalancedCrossEntropy("logits", 0.0, 0.0, 1.0, prior=0.5, of_all_sites=True)
    shares_K = torch.tensor([0.9, 0.1], dtype=torch.float64)
    odds = math.sqrt(0.9), math.sqrt(0.1)
    expected = -sum(math.log(one / sum(odds)) for one in odds) / 2
    unlike = [loss.counted(torch.tensor(own), shares_K) for own in ([3, 1], [0, 40])]
    for counted in unlike:
        assert counted(logits_NK, labels_N).item() == pytest.approx(expected, rel=1e-6)
    # Alone, a site's own shares are those of all.
    alone = loss.counted(torch.tensor([89, 9]))(logits_NK, labels_N).item()
    assert alone == pytest.approx(expected, rel=1e-6)


def test_public_counts_stay_and_must_fit():
    loss = BalancedCrossEntropy("logits", 0.0, 0.0, 1.0, torch.tensor([9, 1]))
    assert loss.counted(torch.tensor([1, 1])).counts_K.tolist() == [9, 1]
    with pytest.raises(ConfigurationError, match="2 numbers for 3 classes"):
        loss.counted(torch.tensor([1, 1, 1]))


def test_hierarchy_scores_the_sums_of_probabilities():
    taxonomy = (("o", "f", "x"), ("o", "f", "y"), ("o", "g", "z"))
    logits_NK = torch.tensor([[0.5, 0.2, 0.3]]).log()
    loss = HierarchicalCrossEntropy(taxonomy)(logits_NK, torch.tensor([1]))
    # One order holds everything and costs nothing; family f has 0.7.
    assert loss.item() == pytest.approx((0.0 - math.log(0.7)) / 2, rel=1e-5)


def test_semantic_targets_follow_the_likeness_of_attributes():
    attributes_KA = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    targets_KK = soft_targets(attributes_KA, 0.5)
    alike, unlike = math.exp(1 / 0.5), math.exp(-1 / 0.5)
    total = 2 * alike + unlike
    assert targets_KK[0].tolist() == pytest.approx([alike / total, alike / total, unlike / total])
    loss = SemanticCrossEntropy(0.5, attributes_KA)(torch.zeros(1, 3), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
