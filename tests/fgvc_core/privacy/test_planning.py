import math

import pytest

from fgvc_core.errors import ConfigurationError
from fgvc_core.privacy.accountant import epsilon_of_plan
from fgvc_core.privacy.planning import gradient_noise, learning_rate, plan_epsilon, plan_for
from fgvc_core.privacy.settings import PrivacySettings

GRADIENTS = {"method": "gradients", "sampling_rate": 0.1, "steps": 5}
PLANS = {
    "class sums": (PrivacySettings(epsilon=8.0), 1),
    "class sums and scores": (PrivacySettings(epsilon=2.0, score_share=0.1), 1),
    "steps": (PrivacySettings(epsilon=2.0, **GRADIENTS), 6),
    "steps and scores": (PrivacySettings(epsilon=2.0, score_share=0.05, **GRADIENTS), 6),
    "adaptive": (PrivacySettings(epsilon=1.0, delta=1e-6, clipping="adaptive", **GRADIENTS), 3),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_costs_its_target_from_below_and_all_but_a_500th_of_it(name):
    privacy, rounds = PLANS[name]
    found = plan_epsilon(privacy, rounds)
    assert privacy.epsilon * 0.998 <= found <= privacy.epsilon
    assert found == epsilon_of_plan(plan_for(privacy, rounds), privacy.delta)


def test_a_plan_holds_every_step_of_every_round_before_the_first():
    privacy, rounds = PLANS["steps"]
    (step,) = plan_for(privacy, rounds)
    assert (step.purpose, step.count, step.sampling_rate) == ("step", 30, 0.1)


def test_class_sums_are_two_releases_whatever_the_rounds_and_scores_one_more():
    privacy, rounds = PLANS["class sums and scores"]
    events = plan_for(privacy, rounds)
    assert [(e.purpose, e.sampling_rate, e.count) for e in events] == [
        ("centre", 1.0, 1), ("class-sums", 1.0, 1), ("scores", 1.0, 1)
    ]  # fmt: skip


def test_the_budget_is_split_as_asked():
    privacy, rounds = PLANS["class sums and scores"]
    shares = {e.purpose: e.noise_multiplier**-2 for e in plan_for(privacy, rounds)}
    whole = sum(shares.values())
    assert shares["scores"] / whole == pytest.approx(0.1)
    assert shares["centre"] / (whole - shares["scores"]) == pytest.approx(privacy.centre_share)


def test_scores_cost_about_their_share_beside_steps():
    privacy, rounds = PLANS["steps and scores"]
    step, scores = plan_for(privacy, rounds)
    alone = epsilon_of_plan([step], privacy.delta)
    assert (scores.purpose, scores.count) == ("scores", 1)
    assert 0.9 * privacy.epsilon < alone < privacy.epsilon


def test_more_steps_than_can_be_composed_are_refused_at_once():
    privacy = PrivacySettings(epsilon=1.0, method="gradients", steps=100_000)
    with pytest.raises(ConfigurationError, match="1,000,000,000 steps"):
        plan_for(privacy, 10_000)


def test_site_and_server_plan_alike():
    privacy, rounds = PLANS["steps"]
    assert plan_for(privacy, rounds) == plan_for(privacy.model_copy(), rounds)


def test_fixed_clipping_spends_all_noise_on_the_gradient():
    privacy, rounds = PLANS["steps"]
    (step,) = plan_for(privacy, rounds)
    assert gradient_noise(step, privacy) == (step.noise_multiplier, math.inf)


def test_adaptive_clipping_costs_what_one_release_does():
    # Andrew et al. 2021, theorem 1: z = (z_gradient**-2 + (2 sigma_b)**-2)**-1/2.
    privacy, rounds = PLANS["adaptive"]
    (step,) = plan_for(privacy, rounds)
    gradient, count = gradient_noise(step, privacy)
    assert (gradient**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(step.noise_multiplier)
    assert step.noise_multiplier < gradient < 1.01 * step.noise_multiplier
    # And by the accountant: the two together are one Gaussian of that noise.
    both = [
        type(step)("step", gradient, 1.0, 7),
        type(step)("scores", 2 * count, 1.0, 7),
    ]
    one = [type(step)("step", step.noise_multiplier, 1.0, 7)]
    assert epsilon_of_plan(both, 1e-5) == pytest.approx(epsilon_of_plan(one, 1e-5), rel=1e-3)


def test_the_learning_rate_is_where_the_bound_on_the_loss_is_least():
    privacy = PrivacySettings(epsilon=2.0, clipping_norm=0.5, lr_distance=20.0, **GRADIENTS)
    (step,) = plan_for(privacy, 6)
    found = learning_rate(step, 30, privacy, 600, 5000)
    # A noisy gradient's length, by hand.
    noise = step.noise_multiplier * 0.5 / (0.1 * 600)
    length = math.sqrt(0.5**2 + 5000 * noise**2)

    def bound(rate):
        return 20.0**2 / (2 * rate * 30) + rate * length**2 / 2

    assert bound(found) == pytest.approx(min(bound(found * 1.01**k) for k in range(-50, 51)))


def test_less_epsilon_means_smaller_steps():
    rates = []
    for epsilon in (4.0, 0.5):
        privacy = PrivacySettings(epsilon=epsilon, lr_distance=20.0, **GRADIENTS)
        rates.append(learning_rate(plan_for(privacy, 6)[0], 30, privacy, 600, 5000))
    assert rates[1] < 0.5 * rates[0]


@pytest.mark.parametrize("name", ["gdp", "rdp", "moments"])
def test_an_accountant_is_no_setting_any_more(name):
    with pytest.raises(
        ConfigurationError, match=rf"'accountant' = '{name}' is no setting any more"
    ):
        PrivacySettings.read({"epsilon": 1.0, "accountant": name})


def test_a_recipe_that_names_the_only_accountant_is_still_read():
    old = PrivacySettings.read({"epsilon": 1.0, "accountant": "pld"})
    assert old == PrivacySettings(epsilon=1.0)
