import pytest

from fgvc_core.protocol.stages import STAGES
from fgvc_core.recipe import load_recipe
from fieldmark.simulations.beginning.shelf import RECIPES, shipped
from fieldmark.simulations.beginning.telling import as_text, told


def words(name, *sets):
    return as_text(RECIPES / name, told(load_recipe(RECIPES / f"{name}.toml", sets)))


@pytest.mark.slow
@pytest.mark.parametrize("one", shipped(), ids=lambda one: one.name)
def test_every_shipped_recipe_can_be_told(one):
    text = as_text(one.path, told(load_recipe(one.path)))
    for heading in ("What is learned", "By whom", "What happens", "What leaves a site", "Privacy"):
        assert f"\n{heading}\n" in text
    assert "None" not in text.replace("None in the recipe", "")
    assert "{" not in text


def test_a_round_of_training_is_told_with_its_passes():
    text = words("demo")
    assert "In each of 48 rounds a site trains the received model" in text
    assert "(1 pass)" in text
    assert "12 classes of the embedded pictures" in text


def test_networks_side_by_side_are_all_named():
    told_ = words("cub50-dp")
    assert "By tf_efficientnet_lite0 and tf_efficientnet_lite2 with" in told_


def test_no_round_is_said_to_be_none():
    assert "There is no round of training" in words("cub50-best")


def test_privacy_is_told_with_its_cost_and_its_unit():
    text = words("demo-dp")
    assert "charged epsilon 4 at delta 1e-05 for a picture" in text
    assert "noisy sums" in text
    assert "all pictures of one subject" in words("demo-dp", "privacy.unit=subject")


def test_sums_that_are_opened_together_are_told():
    assert "opens sums over 6 sites or more" in words("demo-secure")


def test_hostile_sites_and_what_bounds_them_are_told():
    assert "20% of the sites are hostile" in words("faults")
    assert "'krum' bounds what 20% of a round's sites can do" in words(
        "demo", "federation.strategy=krum"
    )


def test_maps_that_are_kept_are_told_with_their_size():
    exact = ("augment.rotation=0", "augment.zoom=0", "augment.color=0")
    text = words("demo", "model.backbone=fieldmark_nano", "model.train=stage4", *exact)
    assert "in front of 'stage4' is computed once and kept on each site's disk" in text
    assert "(2 views of it)" in text
    text = words("demo", "model.train=stage4", "augment.mix=mixup")
    assert "Each step computes the whole network: augment.mix = 'mixup'" in text
    assert "map in front" not in words("demo")


def test_every_stage_has_words():
    from fieldmark.simulations.beginning.telling import _STAGES

    for stage in STAGES.values():
        assert stage.name in _STAGES or stage.name == "roll_call" or stage.name.endswith("-sum")


def test_a_pass_that_is_spread_over_rounds_and_a_backbone_that_ends_early_are_told():
    assert "(1 of 4 parts of a pass)" in words("demo", "train.pass_rounds=4")
    text = words(
        "ham10000", *("model.backbone=test_efficientnet", "model.weights=none", "model.until=")
    )
    assert "test_efficientnet with" in text
    early = words(
        "ham10000",
        *("model.backbone=test_efficientnet", "model.weights=none", "model.until=blocks.1"),
    )
    assert "test_efficientnet up to blocks.1 with" in early
