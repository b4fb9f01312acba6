"""What becomes of BatchNorm: what moves, what travels, what couples, what is refused."""

import pytest
import torch
from torch import nn

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.experiment import completed, make_learner
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import (
    GroupNormAct,
    Standardised,
    batch_norms,
    norm_names,
    travelling_names,
)
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.compatibility import validate_private

IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
RESNET = ("model.backbone=test_resnet", "model.attention=none", "data.image_size=64")


def build(norm, **settings):
    chosen = {"backbone": "test_resnet", "attention": "none", "norm": norm, **settings}
    return build_classifier(ModelSettings(**chosen), 4, 64, 0)


def statistics(model):
    return torch.cat([norm.running_mean for _, norm in batch_norms(model)])


def test_frozen_statistics_never_move_and_do_not_travel_but_scales_train():
    model = build("frozen").train()
    before = statistics(model)
    model(IMAGES).square().sum().backward()
    assert torch.equal(statistics(model), before)
    names = travelling_names(model)
    assert not any("running_" in name for name in names)
    assert any(name.endswith("bn1.weight") for name in names)
    plain = build("batch").train()
    plain(IMAGES)
    assert not torch.equal(statistics(plain), before)
    assert any("running_mean" in name for name in travelling_names(plain))


@pytest.mark.parametrize("norm", ["batch", "fixbn", "local"])
def test_counters_of_batches_never_travel(norm):
    assert not any("num_batches" in name for name in travelling_names(build(norm)))
    assert not any("num_batches" in name for name in norm_names(build(norm)))


def test_fixbn_moves_its_statistics_in_the_first_rounds_alone():
    from fgvc_core.training.loop import Stretch

    recipe = parse_recipe("", [*RESNET, "model.norm=fixbn", "model.norm_fixed_from=0.5"])
    learner = make_learner(recipe, 4)

    class Six:
        labels_N = torch.arange(6) % 4
        known = None

        def __len__(self):
            return 6

        def lesson(self, model, positions, generator):
            return model.embed(IMAGES[positions]), self.labels_N[positions]

    learner.loss.informed = lambda known: learner.loss
    moved = []
    for number in (1, 2, 3, 4):
        before = statistics(learner.model).clone()
        learner.train_round(Six(), Stretch(number, 4), "here")
        moved.append(not torch.equal(statistics(learner.model), before))
    assert moved == [True, True, False, False]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("norm", ["group", "standardised"])
def test_groups_take_the_place_of_batches_with_their_scales_and_activations(backbone, norm):
    plain, model = build("batch", backbone=backbone), build(norm, backbone=backbone)
    assert not list(batch_norms(model.backbone))
    groups = {n: m for n, m in model.backbone.named_modules() if isinstance(m, GroupNormAct)}
    assert set(groups) == {name for name, _ in batch_norms(plain.backbone)}
    for name, norm_ in batch_norms(plain.backbone):
        assert torch.equal(groups[name].weight, norm_.weight)
        assert type(groups[name].act) is type(getattr(norm_, "act", nn.Identity()))
    # One picture's answer does not depend on who else is in the batch.
    model.train()
    torch.nn.init.normal_(model.head.weight)
    torch.testing.assert_close(model(IMAGES)[:2], model(IMAGES[:2]), atol=1e-4, rtol=1e-4)
    assert model(IMAGES[:0]).shape == (0, 4)
    model(IMAGES).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == set(travelling_names(model))
    assert any("parametrizations" in name for name in trained) == (norm == "standardised")


def test_standardised_weights_have_mean_0_and_variance_1():
    weight = Standardised()(3 + 5 * torch.randn(4, 3, 3, 3, generator=torch.Generator()))
    torch.testing.assert_close(weight.flatten(1).mean(dim=1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.flatten(1).var(dim=1, correction=0), torch.ones(4))


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_policies_that_couple_no_pictures_are_fit_for_privacy(norm):
    recipe = parse_recipe(
        "", [*RESNET, f"model.norm={norm}", "privacy.epsilon=8", "privacy.method=gradients"]
    )
    validate_private(make_learner(recipe, 4), recipe.privacy)


def test_what_couples_or_stays_is_refused_under_privacy():
    private = ("privacy.epsilon=8", "privacy.method=gradients")
    recipe = parse_recipe("", [*RESNET, "model.norm=fixbn", *private])
    with pytest.raises(PolicyRefusal):
        validate_private(make_learner(recipe, 4), recipe.privacy)
    with pytest.raises(PolicyRefusal, match=r"model\.norm = 'local'") as caught:
        parse_recipe("", [*RESNET, "model.norm=local", *private])
    assert "frozen" in caught.value.remedy


def test_local_norms_are_named_by_the_completed_recipe_and_missed_without():
    class Table:
        num_classes = 4

    recipe = parse_recipe("", [*RESNET, "model.norm=local"])
    with pytest.raises(ConfigurationError, match=r"federation\.local"):
        make_learner(recipe, 4)
    complete = completed(recipe, Table)
    learner = make_learner(complete, 4)
    assert set(complete.federation.local) == set(norm_names(learner.model))
    assert {n.rpartition(".")[2] for n in complete.federation.local} == {
        *("weight", "bias", "running_mean", "running_var")
    }


def test_a_backbone_without_batchnorm_has_no_policy():
    with pytest.raises(ConfigurationError, match="has no BatchNorm"):
        build_classifier(ModelSettings(norm="group"), 4, 32, 0)
