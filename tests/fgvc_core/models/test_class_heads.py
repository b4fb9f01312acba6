"""Heads that know the classes: of all levels of a taxonomy, and by attributes."""

import pytest
import torch

from fgvc_core.data.fieldmarks import species
from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import completed, make_learner
from fgvc_core.losses.classification import group_log_probabilities
from fgvc_core.models.heads import AttributeHead, MultiLevelHead
from fgvc_core.recipe import filled_like, parse_recipe
from fgvc_core.training.compatibility import validate_private

GROUPS = ((0, 0, 0, 1), (0, 0, 1, 2))
ATTRIBUTES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
FEATURES = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def moved(head, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


@pytest.mark.parametrize(
    "head", [MultiLevelHead(6, GROUPS), AttributeHead(6, ATTRIBUTES, 16.0)], ids=["levels", "read"]
)
def test_shapes_gradients_and_the_empty_batch(head):
    features_ND = FEATURES.clone().requires_grad_()
    logits_NK = moved(head)(features_ND)
    assert logits_NK.shape == (5, 4)
    assert head(FEATURES[:0]).shape == (0, 4)
    assert head.weight.shape == (4, 6)
    (logits_NK**2).sum().backward()
    assert features_ND.grad.any()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_all_classes_begin_equally_likely_at_every_level():
    assert not MultiLevelHead(6, GROUPS)(FEATURES).any()


def test_a_class_adds_up_its_own_its_familys_and_its_orders_score():
    head = moved(MultiLevelHead(6, GROUPS))
    above_NG = head.groups(FEATURES)
    # Class 3 is in order 1 (row 1) and in family 2 (row 2 + 2 orders).
    expected_N = head.classes(FEATURES)[:, 3] + above_NG[:, 1] + above_NG[:, 4]
    torch.testing.assert_close(head(FEATURES)[:, 3], expected_N)
    bias_K = head(torch.zeros(1, 6))
    torch.testing.assert_close(head(FEATURES), FEATURES @ head.weight.T + bias_K)


def test_what_raises_a_family_raises_all_its_species_alike():
    head = MultiLevelHead(6, GROUPS)
    with torch.no_grad():
        head.groups.weight[2] = FEATURES[0]  # family 0: classes 0 and 1
    logits_K = head(FEATURES[:1])[0]
    assert logits_K[0] == logits_K[1] > logits_K[2] == logits_K[3] == 0
    log_NK = logits_K.log_softmax(dim=0)[None]
    families = group_log_probabilities(log_NK, torch.tensor(GROUPS[1])).exp()[0]
    torch.testing.assert_close(families[0], log_NK.exp()[0, :2].sum())


def test_the_class_whose_attributes_are_read_wins_with_the_whole_scale():
    head = AttributeHead(3, ATTRIBUTES, 8.0)
    with torch.no_grad():
        head.read.weight.copy_(torch.eye(3))
        head.read.bias.zero_()
    values = torch.tensor(ATTRIBUTES, dtype=torch.float32)
    logits = head(values - values.mean(dim=0))
    assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(logits.diagonal(), torch.full((4,), 8.0))
    assert (logits.abs() <= 8.0001).all()


def test_training_pushes_nothing_away_from_a_class_that_nobody_has():
    head = moved(AttributeHead(6, ATTRIBUTES, 8.0, unseen=(3,))).train()
    logits = head(FEATURES)
    (unseen,) = torch.autograd.grad(logits[:, 3].sum(), head.read.weight, retain_graph=True)
    (seen,) = torch.autograd.grad(logits[:, 0].sum(), head.read.weight)
    assert not unseen.any()
    assert seen.any()
    torch.testing.assert_close(head.eval()(FEATURES), logits)


@pytest.mark.parametrize("head", ["multilevel", "semantic"])
def test_a_recipe_is_completed_from_the_data_set_and_says_so_where_it_cannot(head):
    recipe = parse_recipe("", [f"model.head={head}", "data.image_size=32"])
    with pytest.raises(ConfigurationError, match="is empty") as caught:
        make_learner(recipe, 12)
    assert "simulation" in caught.value.remedy

    class Table:
        num_classes = 12
        taxonomy = species.TAXONOMY
        attributes_KA = species.attributes_KA()
        class_names = species.CLASS_NAMES

    complete = completed(recipe, Table)
    assert completed(complete, Table) == complete
    assert parse_recipe(complete.to_toml()).digest == complete.digest
    learner = make_learner(complete, 12)
    assert learner.model(torch.zeros(2, 3, 32, 32)).shape == (2, 12)
    with pytest.raises(ConfigurationError, match="11"):
        make_learner(complete, 11)
    plain = parse_recipe("", ["data.image_size=32"])
    assert completed(plain, Table) is plain


def test_groups_are_numbered_by_the_taxonomy():
    class Table:
        num_classes = 12
        taxonomy = (("x", "p", "1"), ("x", "q", "2"), ("y", "r", "3"))

    recipe = completed(parse_recipe("", ["model.head=multilevel"]), Table)
    assert recipe.model.class_groups == ((0, 0, 1), (0, 1, 2))


@pytest.mark.parametrize("engine", ["batched", "loop", "opacus"])
@pytest.mark.parametrize(
    "head",
    [
        ["model.head=multilevel", "model.class_groups=[[0,0,1,1]]"],
        ["model.head=semantic", "model.class_attributes=[[1,0,0],[0,1,0],[0,0,1],[1,1,0]]"],
    ],
    ids=["levels", "read"],
)
def test_both_are_fit_for_privacy(head, engine):
    recipe = parse_recipe(
        "",
        [
            *head,
            "data.image_size=32",
            "privacy.epsilon=8",
            "privacy.method=gradients",
            f"privacy.engine={engine}",
        ],
    )
    validate_private(make_learner(recipe, 4), recipe.privacy)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["model.head=multilevel", "model.class_groups=[[0,2,1,1],[0,0]]"], "level 1"),
        (["model.head=multilevel", "model.class_groups=[[0,3,1,1]]"], "without a gap"),
        (["model.head=semantic", "model.class_attributes=[[1],[0],[1]]"], "4 rows"),
        (
            [
                "model.head=semantic",
                "model.class_attributes=[[1],[0],[1],[0]]",
                "model.unseen_classes=[4]",
            ],
            "unseen_classes",
        ),
    ],
)
def test_knowledge_that_does_not_fit_is_refused_by_name(sets, said):
    with pytest.raises(ConfigurationError, match=said):
        make_learner(parse_recipe("", ["data.image_size=32", *sets]), 4)


def test_a_recipe_is_the_one_that_its_run_has_written():
    class Table:
        taxonomy = species.TAXONOMY
        num_classes = 12

    recipe = parse_recipe("", ["model.head=multilevel"])
    written = completed(recipe, Table)
    assert written.digest != recipe.digest
    assert filled_like(recipe, written).digest == written.digest
    other = parse_recipe("", ["model.head=multilevel", "model.class_groups=[[0,1]]"])
    assert filled_like(other, written).digest != written.digest
