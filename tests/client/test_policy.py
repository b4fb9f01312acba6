"""What a site allows: the stricter of recipe and policy, before anything is spent."""

from datetime import date, timedelta

import pytest

from client.privacy.policy import (
    Policy,
    check_inside,
    check_standing,
    check_subject,
    check_tensors,
    protection,
)
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings

from .protected_sites import steps, sums, unprotected

OWN = PrivacySettings(epsilon=2.0, method="gradients")
TODAY = date(2026, 3, 1)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"privacy": "required"}, "policy.privacy = 'required'"),
        ({"epsilon_cap": 2.0}, "policy.epsilon_cap = 2"),
        ({"unit": "image"}, "policy.unit = 'image'"),
    ],
)
def test_a_policy_that_demands_privacy_refuses_a_recipe_without(policy, line):
    with pytest.raises(PolicyRefusal, match=line) as caught:
        protection(Policy(**policy), unprotected())
    assert caught.value.exit_code == 4
    assert protection(Policy(**policy), steps()) == steps().privacy


def test_a_policy_that_demands_nothing_takes_recipes_as_they_are():
    assert Policy().demand == ""
    assert protection(Policy(), unprotected()) is None
    assert protection(Policy(), sums()) == sums().privacy


@pytest.mark.parametrize("more", [{}, {"privacy": "required"}, {"epsilon_cap": 3.0}])
def test_the_policys_own_noise_is_added_where_the_recipe_has_none(more):
    policy = Policy(own=OWN, **more)
    assert policy.demand
    assert protection(policy, unprotected()) == OWN
    # A recipe that has its own keeps it: the cap bounds what it may cost.
    assert protection(policy, steps()) == steps().privacy


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"delta": 1e-6}, "policy.delta = 1e-06"),
        ({"unit": "subject"}, "policy.unit = 'subject'"),
    ],
)
def test_a_recipe_that_promises_less_than_the_policy_is_refused(policy, line):
    with pytest.raises(PolicyRefusal, match=line):
        protection(Policy(**policy), steps())


def test_a_recipe_may_promise_more_than_the_policy():
    stricter = steps("privacy.delta=1e-7", "privacy.unit=subject")
    policy = Policy(privacy="required", delta=1e-6, unit="image")
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


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        ("data.manifest=../others/manifest.csv", False),
        ("data.manifest=/srv/others/manifest.csv", False),
        ("data.manifest=deep/./list..csv", True),
        ("data.path_template=../others/{path}.jpg", False),
        ("data.path_template=/srv/{path}", False),
        ("data.path_template=a/{path}/..", False),
        ("data.path_template=images/{path}.jpg", True),
    ],
)
def test_a_recipe_reads_nothing_but_the_sites_own_data(setting, fits):
    if fits:
        check_inside(unprotected(setting))
        return
    with pytest.raises(PolicyRefusal, match="leads out of this site's data"):
        check_inside(unprotected(setting))


def test_the_digest_tells_policies_apart():
    digests = {p.digest for p in (Policy(), Policy(epsilon_cap=1.0), Policy(expires=TODAY))}
    assert len(digests) == 3
    assert Policy(epsilon_cap=1.0).digest in digests
