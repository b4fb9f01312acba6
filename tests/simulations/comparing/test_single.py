from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.comparing.single import single_recipe


def test_one_site_keeps_the_guarantee_and_drops_what_is_between_sites(tiny):
    recipe = parse_recipe(
        tiny.to_toml(),
        ["federation.strategy=trimmed-mean", "federation.fraction=0.34", "federation.rounds=6",
         "privacy.epsilon=3.0", "privacy.method=gradients", "train.optimizer=sgd",
         "scenario.dropout=0.1", "evaluate.pixel_baseline=true"],
    )  # fmt: skip
    found = single_recipe(recipe, 3)
    assert found.privacy == recipe.privacy
    assert found.federation.strategy == "fedavg"
    # Two of three sites take part in a round.
    assert (found.federation.rounds, found.federation.fraction) == (4, 1.0)
    assert found.scenario is None
    assert not found.evaluate.pixel_baseline
    assert (found.model, found.train, found.data, found.seed) == (
        recipe.model, recipe.train, recipe.data, recipe.seed,
    )  # fmt: skip
