import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.models.build import build_classifier
from fgvc_core.models.pooling import (
    GeneralisedMean,
    Pooling,
    SecondOrderPooling,
    make_pooling,
    matrix_square_root,
)
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import frozen_digest, is_frozen_backbone

MAP = torch.rand(2, 6, 4, 3, generator=torch.Generator().manual_seed(0))
KINDS = ("avg", "max", "avgmax", "both", "moments", "gem", "bilinear", "mpncov", "parts")


@pytest.mark.parametrize("kind", KINDS)
def test_every_pooling_gives_its_length_on_full_and_empty_batches_with_gradients(kind):
    pooling = make_pooling(ModelSettings(pooling=kind, pooling_channels=4), 6)
    map_NCHW = MAP.clone().requires_grad_()
    vectors_ND = pooling(map_NCHW)
    assert vectors_ND.shape == (2, pooling.out_dim)
    (vectors_ND**2).sum().backward()
    assert torch.isfinite(map_NCHW.grad).all()
    assert map_NCHW.grad.any()
    assert pooling(MAP[:0]).shape == (0, pooling.out_dim)


def test_both_is_mean_and_maximum_one_after_the_other():
    expected = torch.cat([MAP.mean(dim=(2, 3)), MAP.amax(dim=(2, 3))], dim=1)
    assert torch.equal(Pooling("both", 6)(MAP), expected)


def test_moments_are_mean_and_deviation_one_after_the_other():
    deviations = MAP.flatten(2).std(dim=2, correction=0)
    expected = torch.cat([MAP.mean(dim=(2, 3)), deviations], dim=1)
    torch.testing.assert_close(Pooling("moments", 6)(MAP), expected)


def test_the_deviation_of_an_even_map_has_a_finite_gradient():
    map_NCHW = torch.ones(1, 6, 4, 4, requires_grad=True)
    Pooling("moments", 6)(map_NCHW).sum().backward()
    assert torch.isfinite(map_NCHW.grad).all()


def test_the_generalised_mean_lies_between_mean_and_maximum():
    torch.testing.assert_close(GeneralisedMean(6, 1.0)(MAP), MAP.mean(dim=(2, 3)))
    torch.testing.assert_close(
        GeneralisedMean(6, 200.0)(MAP), MAP.amax(dim=(2, 3)), rtol=0.05, atol=0
    )


@given(seed=st.integers(0, 500), size=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_the_root_times_itself_is_the_matrix(seed, size):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    # Well-conditioned: a few iterations leave tiny eigenvalues short of their root.
    matrix = base @ base.transpose(1, 2) + size * torch.eye(size, dtype=torch.float64)
    root = matrix_square_root(matrix)
    torch.testing.assert_close(root @ root, matrix, rtol=2e-2, atol=2e-2 * float(matrix.max()))


def test_a_black_map_has_a_finite_root_and_gradient():
    for kind in ("bilinear", "mpncov"):
        map_NCHW = torch.zeros(1, 6, 2, 2, requires_grad=True)
        SecondOrderPooling(kind, 6, 4)(map_NCHW).sum().backward()
        assert torch.isfinite(map_NCHW.grad).all()


def test_bilinear_vectors_have_length_one_and_see_pairs_of_channels():
    pooling = SecondOrderPooling("bilinear", 2, 2)
    together = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    apart = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert torch.equal(Pooling("avg", 2)(together), Pooling("avg", 2)(apart))
    assert pooling(together).norm().item() == pytest.approx(1.0, abs=1e-3)
    assert not torch.allclose(pooling(together), pooling(apart), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_is_as_wide_as_its_pooling(kind):
    chosen = ModelSettings(pooling=kind, pooling_channels=8, train="head")
    model = build_classifier(chosen, 3, 32, 0)
    images_NCHW = torch.zeros(1, 3, 32, 32)
    assert model.embed(images_NCHW).shape == (1, model.feature_dim)
    assert model(images_NCHW).shape == (1, 3)
    assert is_frozen_backbone(model)


def test_cached_features_of_other_poolings_and_scalings_never_mix():
    digests = {
        frozen_digest(build_classifier(ModelSettings(train="head", **changed), 3, 32, 0))
        for changed in (
            *({"pooling": kind} for kind in KINDS),
            *({"pooling": "gem", "gem_power": 2.0}, {"pooling": "mpncov", "pooling_channels": 8}),
            {"attention": "eca"},
            *({"scaling": "root"}, {"scaling": "unit"}, {"mirrored": True}),
        )
    }
    assert len(digests) == len(KINDS) + 6
