import pytest

from fgvc_core.models.weight_names import PACKAGES
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.beginning.reckoning import cost_of
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

HEAD = ["federation.rounds=0", "model.train=head", "data.val_fraction=0.0"]
PRIVATE = ["federation.rounds=1", "model.train=head", "data.val_fraction=0.0", "data.image_size=64",
           "privacy.epsilon=8.0", "privacy.method=class-sums", "model.head=whitened",
           "privacy.scatter_share=0.05", "model.directions=64", "model.pooling=max",
           "model.backbone=tf_efficientnet_lite0", "model.weights=package",
           "model.attention=none"]  # fmt: skip

TOLERANCE = 0.05
"""Of what is announced: the signed text around the tensors is not always as long."""


def counted_of(recipe, out):
    metrics = simulate(Simulation(recipe, out, quiet=True))
    sites = metrics["sites"].values()
    return max(site["bytes_up"] for site in sites), max(site["bytes_down"] for site in sites)


@pytest.mark.parametrize(
    "sets",
    [["federation.rounds=2"], [*HEAD, "train.start=lda"], [*HEAD, "train.start=regression"],
     [*HEAD, "train.start=auto"], PRIVATE],
    ids=["rounds", "lda", "regression", "auto", "class-sums"],
)  # fmt: skip
def test_what_is_announced_is_what_a_run_counts(sets, tiny, tmp_path):
    if sets is PRIVATE:
        pytest.importorskip(PACKAGES["tf_efficientnet_lite0"], reason="needs the 'weights' extra")
    recipe = parse_recipe(tiny.to_toml(), ["partition.sites=2", *sets])
    cost = cost_of(recipe, 12)
    found = counted_of(recipe, tmp_path / "run")
    for (fewest, most), counted in zip((cost.up, cost.down), found, strict=True):
        assert (1 - TOLERANCE) * fewest <= counted <= (1 + TOLERANCE) * most


def test_only_a_search_for_a_head_has_a_range(tiny):
    searched, one = (
        cost_of(parse_recipe(tiny.to_toml(), [*HEAD, f"train.start={start}"]), 12)
        for start in ("auto", "lda")
    )
    assert searched.messages[0] < searched.messages[1]
    assert " to " in searched.told_up()
    assert one.up[0] == one.up[1]
    assert one.told_messages() == "2 messages"
    assert searched.up[0] > 3 * one.up[1]


def test_class_sums_weigh_what_the_subspace_does(tiny):
    sets = ["model.head=subspace", "model.directions=64", "privacy.epsilon=4.0",
            "federation.rounds=1", "model.train=head", "model.backbone=tf_efficientnet_lite0",
            "model.attention=none"]  # fmt: skip
    recipe = parse_recipe(tiny.to_toml(), sets)
    tensors = (12 * 65 + 64) * 4
    assert tensors < cost_of(recipe, 12).up[0] < tensors + 3_000
    whitened = ["model.head=whitened", "privacy.scatter_share=0.05"]
    more = cost_of(parse_recipe(recipe.to_toml(), whitened), 12).up[0] - cost_of(recipe, 12).up[0]
    assert 64 * 65 // 2 * 4 <= more < 64 * 65 // 2 * 4 + 500


def test_a_whitened_head_also_asks_for_a_scatter_and_an_early_map_is_as_wide_as_its_channels(tiny):
    sets = ["model.head=whitened", "privacy.scatter_share=0.05", "privacy.epsilon=4.0",
            "federation.rounds=1", "model.train=head", "model.backbone=tf_efficientnet_lite0",
            "model.attention=none", "model.until=blocks.4"]  # fmt: skip
    cost = cost_of(parse_recipe(tiny.to_toml(), sets), 12)
    values = (12 * 113 + 112 + 112 * 113 // 2) * 4
    assert values < cost.up[0] < values + 3_000
    assert cost.down[0] > 2 * (112 + 112 * 112) * 4
