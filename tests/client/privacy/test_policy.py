"""What a site allows: the stricter of recipe and policy, before anything is spent."""

from datetime import date, timedelta

import pytest

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings
from fieldmark.client.privacy.policy import (
    Policy,
    check_engine,
    check_standing,
    check_subject,
    check_tensors,
    protection,
    read_cap,
)

from ..protected_sites import steps, sums, unprotected

OWN = PrivacySettings(epsilon=2.0, method="gradients")
TODAY = date(2026, 3, 1)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"privacy": "required", "epsilon_cap": "none"}, "policy.privacy = 'required'"),
        ({"epsilon_cap": 2.0}, "policy.epsilon_cap = 2"),
        ({"unit": "image", "epsilon_cap": "none"}, "policy.unit = 'image'"),
    ],
)
def test_a_policy_that_demands_privacy_refuses_a_recipe_without(policy, line):
    with pytest.raises(PolicyRefusal, match=line) as caught:
        protection(Policy(**policy), unprotected())
    assert caught.value.exit_code == 4
    assert protection(Policy(**policy), steps()) == steps().privacy


def test_a_policy_that_demands_nothing_takes_recipes_as_they_are():
    assert Policy().demand == ""
    # That there is no cap asks for nothing.
    assert Policy(epsilon_cap="none").demand == ""
    assert protection(Policy(), unprotected()) is None
    assert protection(Policy(), sums()) == sums().privacy


@pytest.mark.parametrize(
    "demand", [{"privacy": "required"}, {"unit": "image"}, {"unit": "subject"}, {"own": OWN}]
)
def test_whatever_demands_privacy_needs_a_cap_or_the_word_none(demand):
    if "unit" in demand and demand["unit"] == "subject":
        demand = {**demand, "privacy": "required"}
    with pytest.raises(ConfigurationError, match="needs epsilon_cap") as caught:
        Policy.read(demand, "site.toml")
    assert "'none' for no limit" in str(caught.value)
    assert Policy(**demand, epsilon_cap=4.0).cap == 4.0
    open_ended = Policy(**demand, epsilon_cap="none")
    assert (open_ended.cap, bool(open_ended.demand)) == (None, True)
    assert open_ended.cap_in_words == "no cap (policy.epsilon_cap = 'none')"


@pytest.mark.parametrize("cap", [0.0, -1.0, 1e4, float("nan"), "nine", True])
def test_a_cap_is_a_number_or_the_word_none(cap):
    with pytest.raises(ConfigurationError, match=r"above 0 and at most 1000, or 'none'"):
        Policy.read({"epsilon_cap": cap}, "site.toml")


def test_a_command_line_says_a_cap_as_the_file_does():
    assert (read_cap(None), read_cap("none"), read_cap("2.5")) == (None, "none", 2.5)
    with pytest.raises(ConfigurationError, match="neither a number nor 'none'"):
        read_cap("much")


@pytest.mark.parametrize(
    "more", [{"epsilon_cap": "none"}, {"privacy": "required", "epsilon_cap": 9.0}]
)
def test_the_policys_own_noise_is_added_where_the_recipe_has_none(more):
    policy = Policy(own=OWN, **more)
    assert policy.demand
    assert protection(policy, unprotected()) == OWN
    # A recipe that has its own, and asks for no more, keeps it.
    assert protection(policy, steps("privacy.epsilon=1.5")) == steps("privacy.epsilon=1.5").privacy


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("privacy.epsilon=100", "policy.own.epsilon = 2, and the recipe asks for 100"),
        ("privacy.epsilon=2.01", "policy.own.epsilon = 2, and the recipe asks for 2.01"),
        ("privacy.delta=1e-5", "policy.own.delta = 1e-06, and the recipe asks for 1e-05"),
        ("privacy.unit=image", "policy.own.unit = 'subject'"),
    ],
)
def test_the_policys_own_protection_is_a_ceiling_for_a_recipe_that_has_one(asked, line):
    own = PrivacySettings(epsilon=2.0, delta=1e-6, unit="subject", method="gradients")
    policy = Policy(own=own, epsilon_cap=1000.0)
    within = ["privacy.epsilon=2.0", "privacy.delta=1e-6", "privacy.unit=subject"]
    assert protection(policy, steps(*within)) == steps(*within).privacy
    with pytest.raises(PolicyRefusal, match=line):
        protection(policy, steps(*within, asked))


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"delta": 1e-6}, "policy.delta = 1e-06"),
        ({"unit": "subject", "epsilon_cap": 9.0}, "policy.unit = 'subject'"),
    ],
)
def test_a_recipe_that_promises_less_than_the_policy_is_refused(policy, line):
    with pytest.raises(PolicyRefusal, match=line):
        protection(Policy(**policy), steps())


def test_a_recipe_may_promise_more_than_the_policy():
    stricter = steps("privacy.delta=1e-7", "privacy.unit=subject")
    policy = Policy(privacy="required", epsilon_cap=9.0, delta=1e-6, unit="image")
    assert protection(policy, stricter) == stricter.privacy


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"own": {"epsilon": 2.0, "method": "class-sums"}}, "own.method"),
        ({"own": {"epsilon": 2.0, "method": "gradients", "delta": 1e-4}}, "own.delta"),
        ({"own": {"epsilon": 2.0, "method": "gradients"}, "unit": "subject"}, "own.unit"),
        ({"own": {"epsilon": 2.0, "method": "gradients"}, "epsilon_cap": 1.0}, "own.epsilon"),
        ({"epsilon_cap": 0.0}, "epsilon_cap"),
        ({"epsilon_kap": 1.0}, "'epsilon_cap'"),
        ({"expires": "soon"}, "expires"),
        ({"approval": "sometimes"}, "approval"),
    ],
)
def test_a_policy_that_cannot_be_meant_names_its_line(policy, said):
    with pytest.raises(ConfigurationError, match=said):
        Policy.read(policy, "site.toml")


def test_a_site_takes_part_on_its_last_day_and_not_after():
    policy = Policy(expires=TODAY)
    check_standing(policy, 0, 0, TODAY)
    with pytest.raises(PolicyRefusal, match=r"policy\.expires = 2026-03-01"):
        check_standing(policy, 0, 0, TODAY + timedelta(days=1))


@pytest.mark.parametrize(
    ("policy", "units", "pictures", "line"),
    [
        ({"min_units": 41}, 40, 900, "policy.min_units = 41"),
        ({"min_examples": 901}, 40, 900, "policy.min_examples = 901"),
        ({"min_units": 40, "min_examples": 900}, 40, 900, None),
    ],
)
def test_the_fewest_units_and_pictures_are_of_those_publicly_declared(
    policy, units, pictures, line
):
    if line is None:
        check_standing(Policy(**policy), units, pictures, TODAY)
        return
    with pytest.raises(PolicyRefusal, match=line):
        check_standing(Policy(**policy), units, pictures, TODAY)


def test_tensors_that_may_not_leave_are_named():
    policy = Policy(tensors=("head.*", "neck.?"))
    check_tensors(policy, ["head.weight", "head.bias", "neck.1"])
    check_tensors(policy, [])
    for name in ("neck.11", "backbone.head.weight", "HEAD.weight"):
        with pytest.raises(PolicyRefusal, match=f"'{name}' may not leave"):
            check_tensors(policy, ["head.weight", name])


@pytest.mark.parametrize(
    ("data", "column", "fits"),
    [
        ("manifest", "patient", True),
        ("manifest", None, False),
        ("folder", "patient", False),
        ("cub", None, False),
        ("fieldmarks", None, True),
        ("ham10000", None, True),
    ],
)
def test_where_subjects_are_promised_the_data_say_who_is_one(data, column, fits):
    if fits:
        check_subject(data, column)
        return
    with pytest.raises(PolicyRefusal, match=r"privacy\.unit = 'subject'") as caught:
        check_subject(data, column)
    assert "subject_column" in caught.value.remedy


def test_the_digest_tells_policies_apart():
    digests = {p.digest for p in (Policy(), Policy(epsilon_cap=1.0), Policy(expires=TODAY))}
    assert len(digests) == 3
    assert Policy(epsilon_cap=1.0).digest in digests


def test_an_engine_that_the_policy_does_not_name_is_refused():
    asked = steps("privacy.engine=batched")
    with pytest.raises(PolicyRefusal, match=r"policy\.engines = .*'batched'") as caught:
        protection(Policy(), asked)
    assert caught.value.exit_code == 4
    assert protection(Policy(engines=("batched",)), asked) == asked.privacy
    # What 'auto' stands for is settled at the site, and class sums take no steps.
    assert protection(Policy(engines=("loop",)), steps()) == steps().privacy
    assert protection(Policy(), sums("privacy.engine=batched")) is not None
    settled = PrivacySettings(epsilon=2.0, method="gradients", engine="opacus")
    with pytest.raises(PolicyRefusal, match="'opacus'"):
        check_engine(Policy(engines=("loop",)), settled)


def test_a_sites_own_protection_uses_an_engine_that_it_names():
    own = {"epsilon": 2.0, "method": "gradients", "engine": "batched"}
    policy = {"own": own, "epsilon_cap": "none"}
    with pytest.raises(ConfigurationError, match=r"policy\.engines"):
        Policy.read(policy, "site.toml")
    assert Policy.read({**policy, "engines": ["batched"]}, "site.toml").own is not None


def test_the_engines_are_in_a_digest_only_where_they_are_not_the_default():
    for mode in ("python", "json"):
        assert "engines" not in Policy().model_dump(mode=mode)
        assert "engines" in Policy(engines=("loop",)).model_dump(mode=mode)
    assert Policy(engines=("loop",)).digest != Policy().digest
