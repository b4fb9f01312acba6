"""A ledger of shared noise: two figures, two caps, "no promise", torn lines, mixed runs."""

import functools
import json
import math

import pytest
from secure_sites import POLICY, RECIPE

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent, alone, epsilon_of_plan
from fgvc_core.privacy.odometer import Rule, choose_rule
from fgvc_core.privacy.planning import plan_for
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.approval import Pending
from fieldmark.client.privacy.budget import read_budget
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.plans import covers
from fieldmark.client.privacy.policy import Policy, check_secure

from ..protected_sites import make_site, sums

DELTA = 1e-5
SHARED = parse_recipe(RECIPE)
CAP = (50.0, DELTA)


@functools.cache
def shared_events():
    return plan_for(SHARED.privacy, 1, SHARED.sharers)


@functools.cache
def own_events():
    return plan_for(sums().privacy, 1)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, "data", "site-1")


def announce(ledger, run, events):
    rule = choose_rule(events, 50.0, DELTA)
    ledger.announce(
        run, "0" * 64, events, rule, name=run, delta=DELTA, unit="image", target=4.0, units=40,
        portion=1, adjacency="a", policy="p",
    )  # fmt: skip


def charge(ledger, run, events, alone_cap=math.inf):
    announce(ledger, run, events)
    for event in events:
        ledger.reserve(run, 1, f"{run} {event.purpose}", event, CAP, alone_cap)


def test_both_figures_are_charged_when_a_release_is_reserved(ledger):
    assert SHARED.sharers == 4
    assert {event.sharers for event in shared_events()} == {4}
    charge(ledger, "shared", shared_events())
    (plan,) = ledger.plans()
    bare = alone(shared_events())
    assert plan.cost()[0] == epsilon_of_plan(shared_events(), DELTA) == pytest.approx(4.0, rel=2e-3)
    assert plan.cost_alone() == pytest.approx(epsilon_of_plan(bare, DELTA))
    together, apart = ledger.total(DELTA)[0], ledger.total_alone(DELTA)[0]
    # Half the noise.
    assert 1.9 * together < apart
    assert apart == pytest.approx(epsilon_of_plan(bare, DELTA))


def test_a_ledger_without_shared_noise_has_one_figure(ledger):
    charge(ledger, "own", own_events())
    assert ledger.total_alone(DELTA) == ledger.total(DELTA)


def test_mixed_runs_add_up_in_both_figures_in_either_order(tmp_path):
    for first, second in (("shared", "own"), ("own", "shared")):
        (tmp_path / first).mkdir()
        ledger = Ledger(tmp_path / first, "data", "site-1")
        for run in (first, second):
            charge(ledger, run, shared_events() if run == "shared" else own_events())
        together, apart = ledger.total(DELTA)[0], ledger.total_alone(DELTA)[0]
        own, bare = (
            epsilon_of_plan(own_events(), DELTA),
            epsilon_of_plan(alone(shared_events()), DELTA),
        )
        joint = epsilon_of_plan([*own_events(), *shared_events()], DELTA)
        assert joint <= together
        assert (
            max(own, bare)
            < epsilon_of_plan([*own_events(), *alone(shared_events())], DELTA)
            <= apart
        )
        assert together < apart


def test_the_cap_of_one_sites_noise_alone_stops_a_release(ledger):
    announce(ledger, "shared", shared_events())
    bare = epsilon_of_plan(alone(shared_events()), DELTA)
    centre, class_sums = shared_events()
    with pytest.raises(PolicyRefusal, match=r"policy.epsilon_alone_cap = 5: this release"):
        ledger.reserve("shared", 1, "a", centre, CAP, 5.0)
    ledger.reserve("shared", 1, "a", centre, CAP, bare * 1.01)
    ledger.reserve("shared", 1, "b", class_sums, CAP, bare * 1.01)
    # A later run with noise of its own is held to it, too.
    announce(ledger, "own", own_events())
    with pytest.raises(PolicyRefusal, match="epsilon_alone_cap"):
        ledger.reserve("own", 1, "c", own_events()[0], CAP, bare * 1.01)


def test_no_promise_fails_every_number_and_passes_none(ledger):
    step = PrivacyEvent("step", 0.94, 0.05, 100, sharers=24)
    announce(ledger, "steps", (step,))
    with pytest.raises(PolicyRefusal, match="to no promise"):
        ledger.reserve("steps", 1, "a", PrivacyEvent("step", 0.94, 0.05, 1, 24), CAP, 1000.0)
    ledger.reserve("steps", 1, "a", PrivacyEvent("step", 0.94, 0.05, 1, 24), CAP)
    assert ledger.total_alone(DELTA) == (math.inf, "no promise")
    assert ledger.plans()[0].cost_alone() == math.inf
    # What was announced and never charged promises nothing away.
    assert math.isfinite(ledger.total(DELTA)[0])


def test_an_event_covers_another_only_with_less_noise_in_both_figures():
    shared, own = PrivacyEvent("step", 2.0, sharers=4), PrivacyEvent("step", 1.5)
    assert not covers(shared, own)
    assert not covers(own, shared)
    assert covers(PrivacyEvent("step", 1.0), shared)
    assert covers(PrivacyEvent("step", 2.0, sharers=9), shared)
    assert not covers(shared, PrivacyEvent("step", 2.0, sharers=9))


def test_a_torn_line_is_charged_with_what_costs_most_in_either_figure(ledger):
    charge(ledger, "shared", shared_events())
    wide = PrivacyEvent("class-sums", 20.0, sharers=100)
    announce(ledger, "wide", (wide, PrivacyEvent("centre", 9.0)))
    with ledger.path.open("ab") as file:
        file.write(b'{"n": ')
    before = ledger.total(DELTA)[0], ledger.total_alone(DELTA)[0]
    ledger.note("audited", {})
    lost = next(plan.lost for plan in ledger.plans() if plan.run == "wide")
    # The one is dearer together (less noise), the other alone: 20 / 10 is less than 9.
    assert {event.purpose for event in lost} == {"class-sums", "centre"}
    assert ledger.total(DELTA)[0] > before[0]
    assert ledger.total_alone(DELTA)[0] > before[1]


def test_the_rule_alone_follows_from_the_announcement(ledger):
    charge(ledger, "shared", shared_events())
    (plan,) = ledger.plans()
    bare = plan.alone()
    assert bare.rule == Rule(choose_rule(alone(shared_events()), None, DELTA).orders, one_plan=True)
    assert plan.rule != bare.rule


def test_old_and_new_ledgers_read_each_other_without_secure(ledger):
    charge(ledger, "own", own_events())
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert all("sharers" not in json.dumps(line) for line in lines)
    announced = next(line for line in lines if line["kind"] == "announced")
    assert "secure" not in announced


def test_a_policy_as_it_was_has_the_digest_that_it_had():
    """Recorded in ledgers and reports of earlier versions."""
    plain = Policy(privacy="required", epsilon_cap=5.0)
    assert not {"secure", "peers", "epsilon_alone_cap"} & plain.model_dump().keys()
    assert Policy(**plain.model_dump()) == plain
    changed = Policy(**{**plain.model_dump(), "secure": "allowed", "epsilon_alone_cap": 9.0})
    assert changed.digest != plain.digest
    assert Policy(**changed.model_dump()) == changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secure": "allowed", "epsilon_cap": 5.0}, "needs epsilon_alone_cap beside epsilon_cap"),
        ({"epsilon_cap": 5.0, "epsilon_alone_cap": 9.0}, "secure is 'never'"),
        # It would look like a cap, and let every run without differential privacy through.
        ({"secure": "allowed", "epsilon_alone_cap": 9.0}, "= 9 needs epsilon_cap"),
        (
            {"secure": "required", "epsilon_cap": 5.0, "epsilon_alone_cap": 4.0},
            "must be at least epsilon_cap",
        ),
        (
            {"secure": "allowed", "epsilon_cap": "none", "epsilon_alone_cap": 4.0},
            "must be at least epsilon_cap",
        ),
        (
            {"secure": "allowed", "epsilon_cap": 5.0, "epsilon_alone_cap": "none",
             "peers": "first-seen"},
            "must be epsilon_cap",
        ),
        (
            {"secure": "allowed", "epsilon_cap": 5.0, "epsilon_alone_cap": 6.0,
             "peers": "first-seen"},
            "must be epsilon_cap",
        ),
        ({"secure": "sometimes"}, "secure"),
        ({"least_colluding": 0}, "least_colluding"),
        ({"least_honest": 1}, "least_honest"),
    ],
)  # fmt: skip
def test_caps_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        Policy.read(changes)


def test_caps_that_fit():
    Policy(secure="allowed", epsilon_cap=5.0, epsilon_alone_cap=5.0, peers="first-seen")
    Policy(secure="required", epsilon_cap=5.0, epsilon_alone_cap="none")
    Policy(secure="allowed", epsilon_cap="none", epsilon_alone_cap="none")
    assert Policy(secure="allowed").alone_cap is None


@pytest.mark.parametrize(
    ("policy", "changes", "said"),
    [
        ({}, (), "policy.secure = 'never'"),
        ({"secure": "allowed", "least_colluding": 2}, (), "policy.least_colluding = 2"),
        ({"secure": "allowed", "least_honest": 3}, (), "policy.least_honest = 3"),
    ],
)
def test_a_site_may_be_stricter_than_the_recipe(policy, changes, said):
    with pytest.raises(PolicyRefusal, match=said) as refused:
        check_secure(Policy(**policy), parse_recipe(RECIPE, changes))
    assert refused.value.remedy


def test_a_site_that_requires_masked_sums_refuses_a_recipe_without():
    with pytest.raises(PolicyRefusal, match=r"policy\.secure = 'required'"):
        check_secure(Policy(secure="required"), sums())
    check_secure(Policy(secure="required"), SHARED)
    check_secure(Policy(), sums())


def test_who_approves_a_run_is_told_both_figures(tmp_path):
    site = make_site(tmp_path, **POLICY)
    told = " ".join(Pending("run-1", 0.0, SHARED, ("a", "b")).in_words(site))
    assert "epsilon 4 at delta 1e-05 for each image" in told
    bare = epsilon_of_plan(alone(shared_events()), DELTA)
    assert "at most 1 of all sites work with the coordinator; if all others did, " in told
    assert told.endswith(f"epsilon {bare:.3g}")


def test_who_approves_a_run_without_noise_is_told_what_the_sums_hide(tmp_path):
    site = make_site(tmp_path, privacy="optional", epsilon_cap=None, secure="allowed")
    bare = parse_recipe("[secure]\nleast = 3\ncolluding = 1\n")
    told = " ".join(Pending("run-1", 0.0, bare, ("a", "b")).in_words(site))
    assert "no epsilon bounds what its updates tell" in told
    assert "added up under masks, over 3 sites or more" in told
    assert read_budget(site, bare).alone is None


def test_a_run_that_does_not_fit_under_the_cap_alone_is_refused_before_anything(tmp_path):
    site = make_site(tmp_path, **{**POLICY, "epsilon_alone_cap": 6.0})
    admission = Admission(site, Ledger(site.home, site.data_binding, site.name))
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_alone_cap = 6 at delta"):
        admission.check_budget(SHARED.privacy, "sums", shared_events())
    found = read_budget(site, SHARED)
    assert not found.plan["allowed"]
    assert found.plan["epsilon"] == pytest.approx(4.0, rel=2e-3)
    assert found.plan["epsilon_alone"] == pytest.approx(
        epsilon_of_plan(alone(shared_events()), DELTA)
    )
    assert found.alone == {"spent": 0.0, "how": "nothing was released", "cap": 6.0}
