import pytest

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.recipe_rules import refuse_unprotectable

GRADIENTS = "[privacy]\nepsilon = 4.0\nmethod = 'gradients'\n"
SUMS = (
    "[privacy]\nepsilon = 4.0\n[model]\nhead = 'subspace'\ntrain = 'head'\n"
    "[federation]\nrounds = 1\n"
)


@pytest.mark.parametrize("text", [GRADIENTS, SUMS])
def test_what_is_safe_is_read(text):
    recipe = parse_recipe(text)
    assert parse_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "override", "remedy"),
    [
        (GRADIENTS, "federation.strategy=fedprox", "fedavg"),
        (GRADIENTS, "federation.patience=3", "patience = 0"),
        (GRADIENTS, "train.clip_norm=1.0", "privacy.clipping_norm"),
        (SUMS, "federation.patience=3", "patience = 0"),
        (SUMS, "federation.rounds=2", "rounds = 1"),
        (SUMS, "model.head=linear", "'gradients'"),
        (SUMS, "model.train=all", "'gradients'"),
        (GRADIENTS, "privacy.lr_distance=20.0", "'sgd'"),
        (GRADIENTS, "pretrain.method=simclr", "model.weights"),
        (SUMS, "pretrain.method=vicreg", "model.weights"),
        (GRADIENTS, "personal.epochs=2", "personal.epochs = 0"),
        (SUMS, "personal.epochs=2", "personal.epochs = 0"),
        (GRADIENTS, "train.start=means", "train.start = 'none'"),
        (GRADIENTS, "train.start=regression", "privacy.method = 'class-sums'"),
        (SUMS, "train.start=auto", "privacy.method = 'class-sums'"),
    ],
)
def test_what_is_not_is_refused_by_name_with_the_reason_and_the_replacement(text, override, remedy):
    name = override.split("=")[0]
    with pytest.raises(PolicyRefusal) as caught:
        parse_recipe(text, [override])
    assert name in caught.value.what
    assert caught.value.why
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "override", ["federation.strategy=fedprox", "federation.patience=3", "train.clip_norm=1.0"]
)
def test_without_privacy_they_are_as_good_as_ever(override):
    assert parse_recipe("", [override]).privacy is None


def test_a_sites_own_protection_refuses_what_the_recipe_without_any_may_ask():
    recipe = parse_recipe("", ["federation.strategy=fedprox"])
    own = PrivacySettings(epsilon=1.0, method="gradients")
    with pytest.raises(PolicyRefusal, match="fedprox"):
        refuse_unprotectable(recipe, own)
    refuse_unprotectable(Recipe(), own)
