"""What is said of a run's privacy follows from what can be computed."""

import pytest

from fgvc_core.privacy.accountant import ADJACENCY, epsilon_of_plan
from fgvc_core.privacy.claims import UNCHECKED, privacy_claim, read_claim
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings

ASKED = PrivacySettings(epsilon=2.0)
EVENTS = plan_for(ASKED, 1)
EPSILON = epsilon_of_plan(EVENTS, ASKED.delta)
ANSWERED = {"answered": 2, "unprotected": 0}


def statement(**changes):
    sound = {"epsilon": EPSILON, "how": "PLD of one plan", "epsilon_total": EPSILON,
             "how_total": "", "delta": ASKED.delta, "delta_total": ASKED.delta, "unit": "image",
             "adjacency": ADJACENCY, "events": [e.as_json() for e in EVENTS]}  # fmt: skip
    return {**sound, **changes}


def test_it_holds_for_a_run_if_it_holds_for_every_site():
    sites = {"a": ANSWERED, "b": ANSWERED}
    claim = privacy_claim(ASKED, sites, {"a": statement(), "b": statement()})
    assert claim.holds
    assert read_claim({"privacy_claim": claim.as_json()}) == claim


def test_one_site_that_insists_does_not_make_a_plain_run_private():
    claim = privacy_claim(None, {"a": ANSWERED, "b": ANSWERED}, {"a": statement()})
    assert not claim.holds
    assert claim.protected == ["a"]
    assert "without differential privacy" in claim.open["b"]


def test_a_site_that_answered_once_without_it_is_not_protected():
    claim = privacy_claim(ASKED, {"a": {"answered": 2, "unprotected": 1}}, {"a": statement()})
    assert "1 of its replies" in claim.open["a"]


NOISY = [{"purpose": "step", "noise_multiplier": 0.5, "sampling_rate": 1.0, "count": 9_000_000}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilon": 0.1}, "states epsilon 0.1, and what it released costs 2"),
        ({"epsilon": float("inf")}, "promises nothing"),
        ({"epsilon": float("nan")}, "promises nothing"),
        ({"events": []}, "nothing was released"),
        ({"events": [{"purpose": "nothing"}]}, "no release"),
        ({"events": NOISY}, "costs about"),
        ({"events": [NOISY[0]] * 100}, "more than 64"),
        ({"unit": "subject"}, "asks for each image"),
        ({"delta": 0.01}, "delta 0.01"),
        ({"adjacency": "none"}, "another adjacency"),
    ],
)
def test_a_statement_that_does_not_hold_is_named_with_why(changes, said):
    claim = privacy_claim(ASKED, {"a": ANSWERED}, {"a": statement(**changes)})
    assert said in claim.open["a"]
    assert not claim.holds


def test_nobody_who_took_part_is_nothing_learnt_under_it():
    claim = privacy_claim(ASKED, {"a": {"answered": 0}}, {})
    assert (claim.holds, claim.sites) == (False, {})


def test_statements_of_earlier_versions_were_not_checked():
    claim = read_claim({"privacy": {"a": statement()}, "sites": {"a": {}}})
    assert claim.open == {"a": UNCHECKED}
