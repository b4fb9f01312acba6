"""What each message would work out anew is worked out before the fork, and nothing else is."""

import os

import pytest

from fgvc_core.privacy import accountant, odometer, planning
from fgvc_core.privacy.accountant import epsilon_of_plan
from fgvc_core.privacy.planning import plan_for
from fieldmark.client.announced import remember
from fieldmark.client.deployment.runner import WarmUp

from ..protected_sites import make_site, request, steps, unprotected


@pytest.fixture(autouse=True)
def _cold(monkeypatch):
    plan_for.cache_clear()
    accountant._epsilon.cache_clear()
    odometer._curve.cache_clear()
    monkeypatch.setattr(accountant, "_FOUND", {})


def announced(site, recipe, run="run-1"):
    remember(site.home, request(recipe, "roll_call", run, 0, recipe=recipe.to_toml(),
                                class_names=("a", "b")), lambda run: False)  # fmt: skip


def test_a_private_runs_noise_and_cost_are_there_before_the_next_message(tmp_path, monkeypatch):
    site, recipe = make_site(tmp_path), steps()
    announced(site, recipe)
    assert WarmUp(site.home).look()
    refuse = lambda *args: pytest.fail("it was worked out again")  # noqa: E731
    monkeypatch.setattr(planning, "noise_for", refuse)
    monkeypatch.setattr(accountant, "dp_event", refuse)
    monkeypatch.setattr(odometer, "dp_event", refuse)
    plan = plan_for(recipe.privacy, recipe.federation.rounds, recipe.sharers)
    assert epsilon_of_plan(plan, recipe.privacy.delta) <= recipe.privacy.epsilon
    assert epsilon_of_plan(plan, site.settings.policy.delta) > 0
    assert odometer.choose_rule(plan, None, site.settings.policy.delta).orders


def test_each_announcement_is_looked_at_once(tmp_path):
    site = make_site(tmp_path)
    warm_up = WarmUp(site.home)
    assert not warm_up.look()
    announced(site, steps())
    assert warm_up.look()
    assert not warm_up.look()
    announced(site, steps("federation.rounds=2"), "run-2")
    later = (site.home / "runs" / "run-1.json").stat().st_mtime + 1
    os.utime(site.home / "runs" / "run-2.json", (later, later))
    assert warm_up.look()


def test_a_run_without_privacy_a_damaged_one_and_an_impossible_one_are_left_alone(tmp_path):
    open_site = make_site(tmp_path, "open", privacy="optional")
    announced(open_site, unprotected())
    assert not WarmUp(open_site.home).look()
    site = make_site(tmp_path)
    announced(site, steps("privacy.steps=100000", "federation.rounds=11"))
    assert not WarmUp(site.home).look()
    (site.home / "runs" / "run-1.json").write_text("{")
    assert not WarmUp(site.home).look()


def test_how_large_a_runs_model_is_is_known_before_the_next_message(tmp_path, monkeypatch):
    from fgvc_core.models import size
    from fieldmark.client.recipe_limits import check_lent

    for known in (size.model_size, size.kept_bytes, size._without_values):
        known.cache_clear()
    site, recipe = make_site(tmp_path, privacy="optional"), unprotected("data.image_size=48")
    announced(site, recipe)
    WarmUp(site.home).look()
    monkeypatch.setattr(size, "build_classifier", lambda *a, **k: pytest.fail("built again"))
    check_lent(site, recipe, ("a", "b"))
