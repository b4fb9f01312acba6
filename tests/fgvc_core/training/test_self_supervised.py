import numpy as np
import pytest
from extras import needs
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.loop import Stretch
from fgvc_core.training.self_supervised import HEAD, PROJECTOR, Pretraining, fresh_projector

needs("lightly", "the extra 'pretraining' is not installed")

SETS = ("data.fieldmarks_train=24", "data.fieldmarks_test=12", "data.fieldmarks_pool=24")
METHODS = ("simclr", "vicreg")


def recipe_for(method, *sets):
    return parse_recipe(TINY, [*SETS, f"pretrain.method={method}", "pretrain.batch_size=16", *sets])


def work_for(recipe):
    learner = make_learner(recipe, 12)
    return learner, Pretraining(learner, recipe.pretrain)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    recipe = recipe_for("simclr")
    table = make_table(recipe, cache)
    return make_learner(recipe, 12).pictures(table.where("pool"), cache)


@pytest.mark.parametrize("method", METHODS)
def test_rounds_lower_the_loss_and_leave_the_head_alone(method, pool):
    learner, work = work_for(recipe_for(method))
    before = learner.tensors()
    losses = [work.train_round(pool, Stretch(r, 5), "here").loss for r in range(1, 6)]
    assert losses[-1] < losses[0]
    after = learner.tensors()
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith(HEAD), name
    assert not learner.model.training


def test_equal_rounds_give_equal_bits_and_another_site_other_ones(pool):
    def trained(purpose):
        _, work = work_for(recipe_for("vicreg"))
        work.train_round(pool, Stretch(1, 2), purpose)
        return work.tensors()

    one, two, other = trained("a"), trained("a"), trained("b")
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_what_travels_is_the_backbone_and_the_projector_and_can_be_taken_over(pool):
    recipe = recipe_for("simclr")
    _, work = work_for(recipe)
    fresh = work.tensors()
    assert not any(name.startswith(HEAD) for name in fresh)
    projector = {n: a for n, a in fresh.items() if n.startswith(PROJECTOR)}
    begun = fresh_projector(256, recipe.pretrain, recipe.seed)
    assert set(projector) == set(begun)
    assert all(np.array_equal(projector[n], begun[n]) for n in begun)
    work.train_round(pool, Stretch(1, 1), "here")
    _, other = work_for(recipe)
    other.load(work.tensors())
    assert all(np.array_equal(a, other.tensors()[n]) for n, a in work.tensors().items())


def test_tensors_of_another_projector_are_refused():
    _, work = work_for(recipe_for("simclr"))
    wrong = {n: a for n, a in work.tensors().items() if n != f"{PROJECTOR}0.weight"}
    with pytest.raises(PeerError, match="projector"):
        work.load(wrong)


def test_pictures_alone_in_their_batch_teach_nothing(pool):
    _, work = work_for(recipe_for("simclr"))
    before = work.tensors()
    one = type("One", (), {"__len__": lambda _: 1})()
    assert work.train_round(one, Stretch(1, 1), "here").loss == 0.0
    assert all(np.array_equal(a, before[n]) for n, a in work.tensors().items())


def test_a_frozen_backbone_cannot_be_pretrained():
    recipe = parse_recipe(TINY, ["model.train=head"])
    settings = recipe_for("simclr").pretrain
    with pytest.raises(ConfigurationError, match="nothing of the model trains"):
        Pretraining(make_learner(recipe, 12), settings)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["model.train=head"], r"model\.train = 'head'"),
        (["wire.top_k=0.1", "wire.delta=true"], r"wire\.top_k"),
        (['federation.local=["backbone.*"]'], r"federation\.local"),
        (["scenario.attack=sign-flip", "scenario.attackers=0.4"], r"scenario\.attack"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_the_recipe(sets, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        recipe_for("simclr", *sets)
    assert refused.value.remedy


@pytest.mark.parametrize("method", METHODS)
def test_under_privacy_it_is_refused_with_reason_and_replacement(method):
    with pytest.raises(PolicyRefusal, match=r"pretrain\.method") as refused:
        recipe_for(method, "privacy.epsilon=4", "privacy.method=gradients", "model.attention=none")
    assert "batch" in refused.value.why
    assert "model.weights" in refused.value.remedy
