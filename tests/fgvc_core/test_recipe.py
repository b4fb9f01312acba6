from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import Recipe, load_recipe, parse_recipe

RECIPES = sorted((Path(__file__).parents[2] / "simulations" / "recipes").glob("*.toml"))


def test_a_resolved_recipe_reads_back_equal():
    recipe = parse_recipe("name='a'\n[data]\nclasses=['x','y']\nlabel_map={a='x'}", ["seed=4"])
    assert parse_recipe(recipe.to_toml()) == recipe
    assert parse_recipe(recipe.to_toml()).digest == recipe.digest


@given(
    seed=st.integers(0, 2**31 - 1),
    rounds=st.integers(1, 1000),
    alpha=st.floats(1e-3, 1e3),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
def test_any_recipe_survives_its_own_toml(seed, rounds, alpha, name):
    recipe = Recipe.read(
        {
            "name": name,
            "seed": seed,
            "federation": {"rounds": rounds},
            "partition": {"alpha": alpha},
        }
    )
    assert parse_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_sound(path):
    assert load_recipe(path).name == path.stem


def test_set_changes_one_setting_and_takes_plain_text():
    recipe = parse_recipe("", ["train.lr=0.5", "data.name=folder", "model.train=head"])
    assert (recipe.train.lr, recipe.data.name, recipe.model.train) == (0.5, "folder", "head")


def test_what_only_a_simulation_uses_is_not_announced():
    dealt = parse_recipe("", ["partition.scheme=dirichlet", "partition.sites=9"])
    assert dealt.announced.partition == Recipe().partition
    assert dealt.announced.digest == dealt.digest == Recipe().digest
    unseen = parse_recipe("[train]\nstart = 'semantic'\n[partition]\nunseen = ['a']\n")
    assert unseen.announced.partition.unseen == ("a",)
    assert unseen.digest != parse_recipe("[train]\nstart = 'semantic'\n").digest


def test_the_digest_ignores_where_one_machine_keeps_its_pictures():
    assert parse_recipe("", ["data.path=/a"]).digest == parse_recipe("", ["data.path=/b"]).digest
    assert parse_recipe("", ["seed=1"]).digest != parse_recipe("", ["seed=2"]).digest


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("[federation]\nround = 3", [], "Did you mean 'rounds'"),
        ("[federatoin]\nrounds = 3", [], "Did you mean 'federation'"),
        ("", ["federation.roundz=3"], "Did you mean 'rounds'"),
        ("[federation]\nrounds = 0", [], "federation.rounds = 0 and train.start = 'none'"),
        (
            "[federation]\nrounds = 0\nstrategy = 'krum'\n[train]\nstart = 'lda'",
            [],
            "'krum', mix_nearest = false do nothing with federation.rounds = 0",
        ),
        (
            "[federation]\nrounds = 0\n[train]\nstart = 'lda'\n"
            "[scenario]\nattackers = 0.4\nturns = ['claim']",
            [],
            "['fedmedian', 'multi-krum'] do nothing where",
        ),
        ("", ["loss.balance_prior=0.5"], "needs loss.balance = 'logits', not 'none'"),
        (
            "",
            ["loss.balance_prior=0.5", "loss.balance=logits"],
            "needs the shares of the classes over all sites, which nothing says",
        ),
        ("", ["loss.balance_shares=all"], "needs loss.balance = 'logits', not 'none'"),
        (
            "",
            ["loss.balance_shares=all", "loss.balance=logits"],
            "loss.balance_shares = 'all' needs the shares of the classes over all sites, which",
        ),
        ("", ["augment.mirror_maps=true"], "mirror_maps = true would do nothing"),
        ("[federation]\nrounds = -1", [], "'federation.rounds' = -1"),
        ("[federation]\nstrategy = 'fedporx'", [], "Did you mean 'fedprox'"),
        ("[train]\nlr = 'fast'", [], "'train.lr' = 'fast'"),
        ("[privcy]\nepsilon = 1.0", [], "unknown key 'privcy'"),
        ("this is no toml", [], "is not TOML"),
        ("", ["rounds"], "is not section.key=value"),
        ("seed = 1", ["seed.x=3"], "is a value, not a section"),
        ("name = '../up'", [], "'name'"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_reason_and_the_remedy(text, overrides, said):
    with pytest.raises(ConfigurationError) as caught:
        parse_recipe(text, overrides)
    assert said in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no recipe at .*nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


def test_every_setting_has_a_description():
    def walk(cls, where):
        for name, field in cls.model_fields.items():
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            sections = [option for option in options if hasattr(option, "model_fields")]
            if sections:
                yield from walk(sections[0], f"{where}.{name}")
            elif not field.description:
                yield f"{where}.{name}"

    assert list(walk(Recipe, "recipe")) == []
