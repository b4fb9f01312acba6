"""A recipe and a site refuse the same things under differential privacy, at the roll call."""

import pytest

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.recipe_rules import (
    PRIVATE_RULES,
    refuse_coupled,
    refuse_local,
    refuse_personal,
    refuse_pretraining,
    refuse_rounds,
    refuse_start,
    refuse_steps,
    refuse_strategy,
    refuse_unfit_sums,
    refuse_wire,
)
from fieldmark.client.privacy.gate import Gate

from .protected_sites import kinds, make_site, request

OWN = PrivacySettings(epsilon=2.0, method="gradients")
SUMS = PrivacySettings(epsilon=2.0, method="class-sums")
SUBSPACE = ("federation.rounds=1", "model.head=subspace", "model.train=head")

BROKEN = [
    (refuse_strategy, ["federation.strategy=scaffold"], OWN),
    (refuse_strategy, ["federation.strategy=fednova"], OWN),
    (refuse_rounds, ["federation.patience=2"], OWN),
    (refuse_rounds, ["federation.rounds=0", "train.start=means"], OWN),
    (refuse_local, ["federation.local=['head.*']"], OWN),
    (refuse_local, ["model.norm=local"], OWN),
    (refuse_steps, ["train.clip_norm=1.0"], OWN),
    (refuse_unfit_sums, ["federation.rounds=2"], SUMS),
    (refuse_unfit_sums, ["federation.rounds=1", "model.head=cosine"], SUMS),
    (refuse_unfit_sums, [*SUBSPACE, "federation.strategy=least-trimmed"], SUMS),
    (refuse_unfit_sums, [*SUBSPACE, "federation.mix_nearest=true"], SUMS),
    (refuse_coupled, ["loss.triplet=0.5"], OWN),
    (refuse_coupled, ["augment.mix=cutmix"], OWN),
    (refuse_coupled, ["loss.balance=weights"], OWN),
    (refuse_wire, ["wire.top_k=0.1", "wire.delta=true"], OWN),
    (refuse_pretraining, ["pretrain.method=simclr"], OWN),
    (refuse_personal, ["personal.epochs=2"], OWN),
    (refuse_start, ["train.start=means"], OWN),
    (refuse_start, ["train.start=regression", "model.train=head"], OWN),
]


def test_every_rule_has_a_recipe_that_breaks_it():
    assert {rule for rule, _, _ in BROKEN} == set(PRIVATE_RULES)


@pytest.mark.parametrize(("rule", "changes", "privacy"), BROKEN)
def test_a_recipe_and_a_site_refuse_the_same_things(tmp_path, rule, changes, privacy):
    protected = [f"privacy.epsilon={privacy.epsilon}", f"privacy.method={privacy.method}"]
    with pytest.raises(PolicyRefusal) as in_the_recipe:
        parse_recipe("", [*changes, *protected])
    plain = parse_recipe("", changes)
    with pytest.raises(PolicyRefusal) as alone:
        rule(plain, privacy)
    assert alone.value.args == in_the_recipe.value.args, "another rule was first"
    site = make_site(tmp_path, own=OWN)
    # By its own protection, or by that of a recipe that its coordinator never checked.
    asked = plain if privacy is OWN else Recipe.model_copy(plain, update={"privacy": privacy})
    gate = Gate(site)
    with pytest.raises(PolicyRefusal) as at_the_site:
        gate.announce(request(plain, "roll_call", round_=0), asked)
    assert at_the_site.value.what == in_the_recipe.value.what
    assert at_the_site.value.remedy == in_the_recipe.value.remedy
    ledger = site.home / "ledger.jsonl"
    assert not ledger.exists() or "announced" not in kinds(site)
