"""What a recipe with [secure] cannot ask for: each refusal names setting, reason and remedy."""

import pytest
from secure_sites import RECIPE

from fgvc_core.errors import ConfigurationError, FieldmarkError
from fgvc_core.protocol.stages import stages_of
from fgvc_core.recipe import Recipe, differences, filled_like, parse_recipe
from fgvc_core.secure_rules import SUMMED


def test_what_goes_together_is_read_and_written():
    recipe = parse_recipe(RECIPE)
    assert parse_recipe(recipe.to_toml()) == recipe
    assert recipe.sharers == 4
    assert (recipe.secure.rules.honest, recipe.secure.rules.adding(3)) == (2, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("federation.late=mix", "federation.late = 'mix'"),
        ("wire.precision=bfloat16", "[wire]"),
        ("evaluate.unit_price=true", "evaluate.unit_price"),
        ("federation.local=['head.bias']", "federation.local"),
        ("federation.strategy=krum", "krum"),
        ("federation.strategy=scaffold", "scaffold"),
        ("federation.strategy=fednova", "fednova"),
        ("federation.mix_nearest=true", "mix_nearest"),
        ("pretrain.method=simclr", "pretrain.method"),
        ("personal.epochs=1", "personal.epochs"),
        ("train.start=lda", "train.start"),
        ("scenario={attack='far-centre', attackers=0.4}", "scenario.attack = 'far-centre'"),
        ("scenario={attack='claim', attackers=0.4}", "scenario.attack = 'claim'"),
    ],
)
def test_what_needs_a_sites_own_reply_is_refused(change, named):
    with pytest.raises(FieldmarkError) as refused:
        parse_recipe(RECIPE, [change])
    assert named in refused.value.what
    assert refused.value.why
    assert refused.value.remedy


TRAINED = RECIPE.replace('[privacy]\nepsilon = 4.0\nmethod = "class-sums"\n', "").replace(
    'head = "subspace"\n', ""
)
STEPS = ("privacy.epsilon=4.0", "privacy.method=gradients", "privacy.steps=1",
         "train.optimizer=sgd", "privacy.score_share=0.1")  # fmt: skip


@pytest.mark.parametrize("strategy", SUMMED)
def test_updates_without_noise_are_summed_for_strategies_that_need_their_mean(strategy):
    recipe = parse_recipe(TRAINED, [f"federation.strategy={strategy}", "federation.rounds=9"])
    names = [stage.name for stage in stages_of(recipe)]
    assert names == ["train-ready", "train-sum", "score-ready", "score-sum"]


def test_a_private_step_a_round_is_summed_and_so_are_noisy_scores():
    recipe = parse_recipe(TRAINED, [*STEPS, "federation.strategy=fedadam"])
    names = [stage.name for stage in stages_of(recipe)]
    assert names == ["train-ready", "train-sum", "score-ready", "score-sum"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("privacy.steps=2", "privacy.steps = 2"),
        ("privacy.clipping=adaptive", "privacy.clipping = 'adaptive'"),
        ("train.optimizer=adam", "train.optimizer = 'adam'"),
        ("train.weight_decay=0.1", "train.weight_decay = 0.1"),
        ("train.ema=0.9", "train.ema = 0.9"),
        ("train.layer_decay=0.5", "train.layer_decay = 0.5"),
    ],
)
def test_what_a_step_at_the_coordinator_cannot_follow_is_refused(change, named):
    with pytest.raises(FieldmarkError) as refused:
        parse_recipe(TRAINED, [*STEPS, change])
    assert named in refused.value.what
    assert refused.value.why
    assert refused.value.remedy


def test_a_fraction_that_draws_too_few_is_refused():
    recipe = parse_recipe(TRAINED, ["federation.fraction=0.4"])
    with pytest.raises(ConfigurationError, match=r"draws 2 of 5 sites .*secure\.least = 3"):
        recipe.with_sites(5)
    assert recipe.secure.range == 1.0
    # Class sums ask everybody.
    assert parse_recipe(RECIPE, ["federation.fraction=0.4"]).with_sites(5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["secure.colluding=0"], "greater than or equal to 1"),
        (["secure.colluding=2"], "leaves 1 honest sites in a sum"),
        (["secure.least=2"], "greater than or equal to 3"),
        (["secure.most=101"], "less than or equal to 100"),
        (["secure.least=5", "secure.most=4"], "most = 4 is below least = 5"),
    ],
)
def test_numbers_that_promise_nothing_are_refused(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        parse_recipe(RECIPE, changes)


def test_most_is_filled_in_by_the_number_of_sites_and_a_resumed_run_is_the_same():
    recipe = parse_recipe(RECIPE.replace("most = 5\n", ""))
    assert recipe.sharers == 99
    filled = recipe.with_sites(7)
    assert (filled.secure.most, filled.sharers) == (7, 6)
    assert filled.digest != recipe.digest
    assert differences(filled_like(recipe, filled), filled) == []
    assert filled.with_sites(7) is filled
    with pytest.raises(ConfigurationError, match="the federation has 2 sites"):
        recipe.with_sites(2)
    with pytest.raises(ConfigurationError, match="100 in any case"):
        recipe.with_sites(101)


def test_a_recipe_without_the_section_is_what_it_was():
    plain = Recipe()
    assert "secure" not in plain.to_toml()
    assert plain.sharers == 1
    assert plain.with_sites(10_000) is plain
    # As computed before there was such a section.
    assert plain.digest == PLAIN_DIGEST


PLAIN_DIGEST = "3fdde61b668d23c4f0fa6ee5e7cb5b769c38b0a25ce29aa491f10df48d63716f"
