"""The line that says what a run had in place against poisoned updates."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.report.poisoning import RULES, against_poisoning


def said(recipe, sites=5):
    found = against_poisoning(recipe, sites)
    return "; ".join(found.held), "; ".join(found.missing)


def test_a_plain_run_says_that_one_site_can_teach_a_backdoor():
    held, missing = said('[federation]\nstrategy = "fedavg"\n')
    assert "screening" in held
    assert "with fedavg one site can teach a backdoor" in missing
    assert "search of the final model" in missing


def test_a_guarded_run_says_against_how_many_and_where_that_was_not_seen_to_hold():
    rule = '[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.3\n'
    held, missing = said(f'{rule}[model]\ntrain = "head"\n', 20)
    assert "least-trimmed, against 6 of 20" in held
    assert "rule" not in missing
    _, missing = said(rule, 20)
    assert "where more than the head trains" in missing


def test_a_share_of_a_few_sites_can_be_none():
    held, missing = said('[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.2\n', 4)
    assert "least-trimmed" not in held
    assert "none of 4" in missing


def test_other_rules_are_said_not_to_hold_against_backdoors():
    for name in RULES - {"least-trimmed"}:
        held, missing = said(f'[federation]\nstrategy = "{name}"\n')
        assert name in held
        assert f"{name} was not" in missing


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_recipe_that_is_none_says_nothing_and_breaks_nothing(text):
    against_poisoning(text, 5)
