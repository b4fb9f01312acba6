"""Learnt parts, and what keeps their maps apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.losses.base import Answers, build_loss
from fgvc_core.losses.classification import PartDiversity, overlap
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.pooling import PartPooling
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.compatibility import validate_private

MAP = torch.rand(3, 6, 4, 5, generator=torch.Generator().manual_seed(0))
PARTS = ("model.pooling=parts", "model.parts=3", "loss.diversity=0.5", "data.image_size=32")


def test_each_map_is_a_distribution_and_each_part_a_mean_under_it():
    pooling = PartPooling(6, 3)
    vectors_ND, maps_NKHW = pooling.with_maps(MAP)
    assert maps_NKHW.shape == (3, 3, 4, 5)
    torch.testing.assert_close(maps_NKHW.sum(dim=(2, 3)), torch.ones(3, 3))
    second_NC = (maps_NKHW[:, 1:2] * MAP).sum(dim=(2, 3))
    torch.testing.assert_close(vectors_ND[:, 6:12], second_NC)


def test_without_scores_every_part_is_the_mean():
    pooling = PartPooling(6, 2)
    torch.nn.init.zeros_(pooling.find.weight)
    torch.testing.assert_close(pooling(MAP), MAP.mean(dim=(2, 3)).repeat(1, 2))


def test_equal_maps_overlap_wholly_and_disjoint_ones_not_at_all():
    one = torch.zeros(1, 1, 2, 2)
    one[..., 0, 0] = 1.0
    other = one.flip(-1)
    assert overlap(torch.cat([one, one, one], dim=1)).item() == pytest.approx(1.0)
    assert overlap(torch.cat([one, other], dim=1)).item() == pytest.approx(0.0)
    # Of three pairs one is equal and two are disjoint.
    assert overlap(torch.cat([one, one, other], dim=1)).item() == pytest.approx(1 / 3)
    assert overlap(one).tolist() == [0.0]
    assert overlap(torch.zeros(0, 3, 2, 2)).shape == (0,)


@given(seed=st.integers(0, 1000), parts=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_overlap_is_the_mean_cosine_over_pairs(seed, parts):
    maps = torch.rand(2, parts, 3, 3, generator=torch.Generator().manual_seed(seed))
    flat = maps.flatten(2)
    pairs = [
        torch.nn.functional.cosine_similarity(flat[:, i], flat[:, j])
        for i in range(parts)
        for j in range(i)
    ]
    torch.testing.assert_close(overlap(maps), torch.stack(pairs).mean(dim=0))


def test_descending_the_diversity_moves_the_maps_apart():
    pooling = PartPooling(6, 3)
    optimizer = torch.optim.SGD(pooling.parameters(), lr=20.0)
    first = last = 0.0
    for step in range(30):
        value = overlap(pooling.with_maps(MAP)[1]).mean()
        first, last = first or value.item(), value.item()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        assert step == 0 or torch.isfinite(pooling.find.weight).all()
    assert last < 0.7 * first


def test_one_pictures_maps_change_no_others_gradient():
    loss = build_loss(LossSettings(diversity=1.0))
    assert not loss.couples_examples
    assert loss.refusal() is None
    labels_N = torch.tensor([0, 1, 2])

    def gradient(changed):
        maps = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(2))
        maps[2] = maps[2].flip(-1) * changed
        maps.requires_grad_()
        logits = torch.zeros(3, 4)
        (loss.of(Answers(logits, part_maps_NKHW=maps), labels_N) * 3).backward()
        return maps.grad

    torch.testing.assert_close(gradient(1.0)[:2], gradient(7.0)[:2])
    assert gradient(1.0)[:2].abs().max() > 1e-4


def test_training_moves_the_maps_apart_and_the_maps_travel(tmp_path):
    recipe = parse_recipe("", [*PARTS, "loss.diversity=20", "train.lr=0.01"])
    learner = make_learner(recipe, 4)
    assert "pooling.find.weight" in learner.tensors()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    normalised = learner.model.normalise(images)
    learner.model.train()
    optimizer = torch.optim.Adam(learner.model.parameters(), lr=0.01)
    seen = []
    for _ in range(8):
        vectors_ND, maps = learner.model.embed_with_parts(normalised)
        answers = Answers(learner.model.classify(vectors_ND), vectors_ND, None, maps)
        value = learner.loss.of(answers, torch.tensor([0, 1, 2, 3, 0, 1]))
        seen.append(overlap(maps).mean().item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert seen[-1] < seen[0]
    torch.testing.assert_close(
        learner.model.eval().embed_with_parts(normalised)[0], learner.model.embed(normalised)
    )


@pytest.mark.parametrize("engine", ["batched", "loop", "opacus"])
def test_parts_kept_apart_are_fit_for_privacy(engine):
    recipe = parse_recipe(
        "",
        [
            *PARTS,
            "privacy.epsilon=8",
            "privacy.method=gradients",
            f"privacy.engine={engine}",
            "train.optimizer=sgd",
        ],
    )
    validate_private(make_learner(recipe, 4), recipe.privacy)


@pytest.mark.parametrize("sets", [["model.pooling=avg"], ["model.train=head"]])
def test_diversity_without_maps_that_train_is_refused(sets):
    with pytest.raises(ConfigurationError, match=r"loss\.diversity") as caught:
        parse_recipe("", [*PARTS, *sets])
    assert "model.pooling" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="no maps of parts"):
        PartDiversity()(torch.zeros(1, 2), torch.tensor([0]))
