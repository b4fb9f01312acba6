import numpy as np
import pytest
import torch
from tests_heads import CLASSES, FEATURES, head_learner

from fgvc_core.audit.attacker import estimate_coins, step_log_likelihood
from fgvc_core.audit.planted import PlantedGradients, audit_generator, fair_coins
from fgvc_core.audit.planted_features import PlantedFeatures, orthogonal_by_class
from fgvc_core.audit.settings import AuditSettings
from fgvc_core.privacy.gradients import ClosedFormEngine, HeadView, LoopEngine, UnitBatch
from fgvc_core.privacy.sampling import clip_scales


def one_unit(*positions):
    return UnitBatch(np.array(positions), np.zeros(len(positions), np.int64), 1)


@pytest.mark.parametrize("kind", ["spread", "coordinate"])
def test_a_planted_gradient_is_known_and_overlaps_no_other(kind):
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 3), (), (2, 2, 5))]
    planted = PlantedGradients(parameters, 10, kind, 30.0, np.random.default_rng(0))
    loop = LoopEngine(parameters, planted.chosen(np.ones(10, bool)))
    gradients_MD = np.stack([loop.clipped_sum(one_unit(i), 1e9).total_D.numpy() for i in range(10)])
    assert gradients_MD @ gradients_MD.T == pytest.approx(900 * np.eye(10), abs=1e-3)
    assert (gradients_MD != 0).sum(axis=1).tolist() == [4 if kind == "spread" else 1] * 10
    clipped_D = loop.clipped_sum(one_unit(3), 2.0).total_D.numpy()
    assert clipped_D == pytest.approx(gradients_MD[3] / 15, rel=1e-6)
    products_M, lengths_M = planted.along(gradients_MD[3])
    assert products_M == pytest.approx(30 * np.eye(10)[3], abs=1e-4)
    assert (lengths_M == 30).all()


def test_only_canaries_that_are_in_are_numbered():
    model = torch.nn.Parameter(torch.arange(4.0))
    planted = PlantedGradients([model], 4, "coordinate", 1.0, np.random.default_rng(0))
    losses = planted.chosen(np.array([False, True, False, True]))
    assert losses(torch.tensor([0, 1, 1])).abs().tolist() == [1.0, 3.0, 3.0]


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_the_attacker_knows_a_planted_features_gradient(head):
    learner = head_learner(head, "loss.label_smoothing=0.1")
    generator = np.random.default_rng(0)
    for parameter in learner.model.head.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    planted = PlantedFeatures(learner, 40, 20.0, generator)
    module = learner.model.head
    view = HeadView(
        module.weight, getattr(module, "bias", None), getattr(module, "scale", None), 0.1
    )
    engine = ClosedFormEngine(
        lambda: view, torch.from_numpy(planted.features_MD), torch.from_numpy(planted.labels_M)
    )
    size = sum(p.numel() for p in module.parameters())
    values_D = generator.standard_normal(size)
    products_M, lengths_M = planted.along(values_D)
    for number in (0, 17, 39):
        gradient_D = engine.clipped_sum(one_unit(*[number] * planted.copies), 1e9).total_D.numpy()
        assert lengths_M[number] == pytest.approx(np.linalg.norm(gradient_D), rel=1e-6)
        wanted = gradient_D @ values_D / np.linalg.norm(gradient_D)
        assert products_M[number] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert planted.copies == (1 if head == "linear" else 2)
    assert (lengths_M > 10).all()


def test_planted_directions_of_one_class_do_not_overlap():
    vectors, labels = orthogonal_by_class(50, 3, 20, np.random.default_rng(1))
    assert np.bincount(labels).tolist() == [17, 17, 16]
    for label in range(3):
        own = vectors[labels == label]
        assert own @ own.T == pytest.approx(np.eye(len(own)), abs=1e-12)
    few, _ = orthogonal_by_class(2, CLASSES, FEATURES, np.random.default_rng(1))
    assert np.linalg.norm(few, axis=1) == pytest.approx([1.0, 1.0])


def test_an_audits_draws_repeat_with_its_seed_alone():
    def draw(seed):
        return fair_coins(64, audit_generator(AuditSettings(seed=seed))).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert 400 < fair_coins(1000, np.random.default_rng(0)).sum() < 600


def test_the_likelihood_ratio_is_that_of_a_sampled_normal():
    def density(x, mean):
        return np.exp(-((x - mean) ** 2) / (2 * 1.5**2))

    x, length = np.array([-1.0, 0.4, 3.0]), np.array([1.0, 2.0, 0.5])
    wanted = np.log((0.75 * density(x, 0) + 0.25 * density(x, length)) / density(x, 0))
    assert step_log_likelihood(x, length, 1.5, 0.25) == pytest.approx(wanted)
    assert step_log_likelihood(x, length, 1.5, 1.0) == pytest.approx(
        np.log(density(x, length) / density(x, 0))
    )


def test_coins_are_read_off_a_noiseless_sum_even_where_vectors_overlap():
    generator = np.random.default_rng(2)
    vectors = generator.standard_normal((12, 20)) + 2.0
    coins = generator.random(12) < 0.5
    found = estimate_coins(vectors, vectors[coins].sum(axis=0), 1e-6)
    assert found + 0.5 == pytest.approx(coins.astype(float), abs=1e-6)
    # Noise that hides everything leaves the coins at a half.
    assert np.abs(estimate_coins(vectors, vectors[coins].sum(axis=0), 1e4)).max() < 1e-3


def test_a_planted_length_is_clipped_like_any_other():
    assert clip_scales(np.array([30.0**2]), 2.0) == pytest.approx([1 / 15])
