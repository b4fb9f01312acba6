"""The spatial transformer: the identity at first, an affine map later, each picture by itself."""

import pytest
import torch

from fgvc_core.experiment import make_learner
from fgvc_core.models.classifier import SpatialTransformer
from fgvc_core.models.trainable import frozen_digest, is_frozen_backbone
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.compatibility import validate_private

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SETS = ("model.spatial_transformer=true", "data.image_size=32")


def test_it_starts_as_the_identity_and_takes_an_empty_batch():
    transformer = SpatialTransformer()
    torch.testing.assert_close(transformer(IMAGES), IMAGES, atol=1e-5, rtol=0)
    assert transformer(IMAGES[:0]).shape == (0, 3, 32, 32)


def test_a_known_map_moves_the_picture_by_half_its_side():
    transformer = SpatialTransformer()
    with torch.no_grad():
        transformer.map.bias[2] = 1.0  # x: half of the side, which runs from -1 to 1
    moved = transformer(IMAGES)
    torch.testing.assert_close(moved[..., :16], IMAGES[..., 16:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., 17:], IMAGES[..., 31:].expand(-1, -1, -1, 15))


def test_the_map_learns_from_the_classifiers_error():
    learner = make_learner(parse_recipe("", SETS), 3)
    model = learner.model.train()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    model(IMAGES).square().sum().backward()
    assert model.before.map.weight.grad.any()
    assert torch.isfinite(model.before.map.weight.grad).all()
    assert "before.map.weight" in learner.tensors()


def test_frozen_it_stays_the_identity_and_belongs_to_the_cached_features():
    frozen = make_learner(parse_recipe("", [*SETS, "model.train=head"]), 3)
    plain = make_learner(parse_recipe("", ["data.image_size=32", "model.train=head"]), 3)
    assert is_frozen_backbone(frozen.model)
    assert not any(name.startswith("before.") for name in frozen.tensors())
    assert frozen_digest(frozen.model) != frozen_digest(plain.model)


@pytest.mark.parametrize("engine", ["batched", "loop", "opacus"])
def test_it_is_fit_for_privacy(engine):
    recipe = parse_recipe(
        "",
        [*SETS, "privacy.epsilon=8", "privacy.method=gradients", f"privacy.engine={engine}"],
    )
    validate_private(make_learner(recipe, 4), recipe.privacy)
