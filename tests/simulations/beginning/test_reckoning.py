import pytest

from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.beginning.reckoning import cost_of
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate


def counted_of(recipe, out):
    metrics = simulate(Simulation(recipe, out, quiet=True))
    sites = metrics["sites"].values()
    return max(site["bytes_up"] for site in sites), max(site["bytes_down"] for site in sites)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [["federation.rounds=2"], ["federation.rounds=0", "train.start=lda", "model.train=head"]],
    ids=["rounds", "lda"],
)
def test_bytes_are_those_that_a_run_counts(sets, tiny, tmp_path):
    recipe = parse_recipe(tiny.to_toml(), sets)
    cost = cost_of(recipe, 12)
    up, down = counted_of(recipe, tmp_path / "run")
    # Headers and signatures come on top.
    assert cost.up <= up <= 1.1 * cost.up + 20_000
    assert cost.down <= down <= 1.1 * cost.down + 20_000


def test_a_search_sends_statistics_of_each_fold(tiny):
    recipe = parse_recipe(
        tiny.to_toml(), ["train.start=auto", "model.train=head", "federation.rounds=0"]
    )
    one = parse_recipe(recipe.to_toml(), ["train.start=lda"])
    assert cost_of(recipe, 12).up > 3 * cost_of(one, 12).up


def test_class_sums_weigh_what_the_subspace_does(tiny):
    sets = ["model.head=subspace", "model.directions=64", "privacy.epsilon=4.0",
            "federation.rounds=1", "model.train=head", "model.backbone=tf_efficientnet_lite0",
            "model.attention=none"]  # fmt: skip
    recipe = parse_recipe(tiny.to_toml(), sets)
    assert cost_of(recipe, 12).up == (12 * 65 + 64) * 4


def test_a_whitened_head_also_asks_for_a_scatter_and_an_early_map_is_as_wide_as_its_channels(tiny):
    sets = ["model.head=whitened", "privacy.scatter_share=0.05", "privacy.epsilon=4.0",
            "federation.rounds=1", "model.train=head", "model.backbone=tf_efficientnet_lite0",
            "model.attention=none", "model.until=blocks.4"]  # fmt: skip
    cost = cost_of(parse_recipe(tiny.to_toml(), sets), 12)
    assert cost.up == (12 * 113 + 112 + 112 * 113 // 2) * 4
    assert cost.down == (112 + 112 * 112) * 4
