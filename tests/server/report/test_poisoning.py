"""The line that says what a run had in place against poisoned updates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.protocol.settings import ROBUST
from fieldmark.server.report.poisoning import against_poisoning


def said(recipe, sites=5, events=()):
    found = against_poisoning(recipe, sites, events)
    return "; ".join(found.held), "; ".join(found.missing)


def test_a_plain_run_says_that_one_site_can_teach_a_backdoor():
    held, missing = said('[federation]\nstrategy = "fedavg"\n')
    assert "screening" in held
    assert "with fedavg one site can teach a backdoor" in missing
    assert "search of the final model" in missing


def test_a_guarded_run_says_against_how_many_and_where_that_was_not_seen_to_hold():
    rule = '[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.3\n'
    held, missing = said(f'{rule}[model]\ntrain = "head"\n', 20)
    assert "least-trimmed, against 6 of the 20 sites" in held
    assert "rule" not in missing
    _, missing = said(rule, 20)
    assert "where more than the head trains" in missing


def test_a_share_of_a_few_sites_can_be_none():
    held, missing = said('[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.2\n', 4)
    assert "least-trimmed" not in held
    assert "none of the 4 sites" in missing


def test_other_rules_are_said_not_to_hold_against_backdoors():
    for name in ROBUST - {"least-trimmed"}:
        held, missing = said(f'[federation]\nstrategy = "{name}"\n', 10)
        assert f"the rule {name}, against" in held
        assert f"{name} was not" in missing


@pytest.mark.parametrize(
    ("rule", "more", "sites", "said_of_it"),
    [
        ("least-trimmed", "byzantine_share = 0.3\nfraction = 0.3", 10, "none of the 3 sites"),
        ("trimmed-mean", "byzantine_share = 0.3\nfraction = 0.3", 10, "none of the 3 sites"),
        ("krum", "byzantine_share = 0.3", 4, "against 1 of the 4 sites of its smallest round krum"),
        ("multi-krum", "byzantine_share = 0.4", 10, "multi-krum needs 11 replies"),
        ("fedmedian", "fraction = 0.2", 10, "none of the 2 sites"),
        ("geometric-median", "", 1, "none of the 1 site of"),
    ],
)
def test_a_rule_that_cannot_act_on_a_round_is_not_in_place(rule, more, sites, said_of_it):
    held, missing = said(f'[federation]\nstrategy = "{rule}"\n{more}\n', sites)
    assert rule not in held
    assert said_of_it in missing


def test_half_is_half_of_a_round():
    held, _ = said('[federation]\nstrategy = "fedmedian"\nfraction = 0.5\n', 10)
    assert "fedmedian, against 2 of the 5 sites" in held


TRIMMED = '[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.3\n'


def replied(number, replies, kind="train", **more):
    return [
        {"event": "reply", "round": number, "accepted": True, "kind": kind, "site": f"site-{n}",
         **more} for n in range(replies)
    ]  # fmt: skip


def told(number, replies, end="round_finished", **more):
    begun = {"event": "round_started", "round": number}
    return [begun, *replied(number, replies), {"event": end, "round": number, **more}]


def test_the_smallest_round_that_counted_says_how_many_are_guarded_against():
    held, _ = said(TRIMMED, 10, [*told(1, 10), *told(2, 7), *told(3, 1, "round_void")])
    assert "against 2 of the 7 sites of its smallest round" in held
    _, missing = said(TRIMMED, 10, [*told(1, 10), *told(2, 3)])
    assert "none of the 3 sites" in missing


@pytest.mark.parametrize(
    "events",
    [
        [*told(1, 3, "round_void"), *told(1, 3)],
        [*told(1, 3), *replied(1, 3, "score")],
        [*replied(1, 10, phase="pretrain"), *told(1, 3)],
        [*told(1, 3), *replied(1, 10, "score", phase="personal"), *told(2, 10)],
    ],
    ids=["tried again", "closing scores", "pre-training", "personal scores"],
)
def test_replies_that_the_rule_has_not_seen_are_not_counted(events):
    held, missing = said(TRIMMED, 10, events)
    assert "least-trimmed" not in held
    assert "none of the 3 sites" in missing


def test_sites_that_were_found_out_are_not_guarded_against_once_more():
    held, missing = said(TRIMMED, 10, [*told(1, 10, guarded=3), *told(2, 7, guarded=0)])
    assert "least-trimmed" not in held
    assert "none of the 7 sites" in missing


@pytest.mark.parametrize(
    ("settings", "rounds", "held_back"),
    [
        ("", 1, "beside those of earlier rounds: there were none"),
        ("", 2, "direction: it begins with the third round"),
        ("direction_spread = 0.0", 5, "direction: federation.direction_spread = 0"),
    ],
)
def test_updates_are_said_to_be_compared_only_where_they_were(settings, rounds, held_back):
    recipe = f"[federation]\nrounds = {rounds}\n{settings}\n"
    for events in ((), [event for n in range(rounds) for event in told(n + 1, 5)]):
        held, missing = said(recipe, 5, events)
        assert "screening of each update" in held
        assert "direction" not in held
        assert held_back in missing
    recipe = f"[federation]\nrounds = 9\n{settings}\n"
    _, missing = said(recipe, 5, [event for n in range(rounds) for event in told(n + 1, 5)])
    assert held_back in missing


@pytest.mark.parametrize(
    ("sites", "settings", "compared"),
    [(2, "", ""), (3, "", "lengths"), (5, "direction_spread = 0.0", "lengths"), (4, "", "all")],
)
def test_class_statistics_are_said_to_be_compared_only_where_they_were(sites, settings, compared):
    recipe = f'[federation]\nrounds = 0\n{settings}\n[train]\nstart = "lda"\n'
    for registered, events in ((sites, ()), (9, replied(0, sites, "release", phase="statistics"))):
        held, missing = said(recipe, registered, events)
        assert "class statistics by themselves" in held
        assert ("themselves and beside the others'" in held) == (compared == "all")
        assert ("lengths beside the others'" in held) == (compared == "lengths")
        assert ("screening of" in missing) == (compared != "all")


@pytest.mark.parametrize(("sites", "settings"), [(3, ""), (9, "direction_spread = 0.0")])
def test_class_sums_are_said_to_be_compared_only_where_they_were(sites, settings):
    recipe = f'[federation]\nrounds = 1\n{settings}\n[privacy]\nmethod = "class-sums"\n'
    events = [*replied(1, 9, "release", phase="centre"),
              *replied(1, sites, "release", phase="class-sums")]  # fmt: skip
    held, missing = said(recipe, 9, events)
    assert "declared units" in held
    assert "others'" not in held
    assert "direction of class sums beside the others'" in missing


@pytest.mark.parametrize(
    "recipe",
    [
        '[federation]\nrounds = 0\nstrategy = "least-trimmed"\n[train]\nstart = "lda"\n',
        '[federation]\nrounds = 1\nstrategy = "least-trimmed"\n[privacy]\nmethod = "class-sums"\n',
    ],
    ids=["no round", "class sums"],
)
def test_a_run_without_updates_claims_neither_their_screening_nor_a_rule(recipe):
    held, missing = said(recipe)
    assert "length and direction" not in held
    assert "least-trimmed" not in held
    assert "added up" in missing


def test_a_head_that_starts_from_class_statistics_is_screened_and_has_no_rule():
    rule = '[federation]\nstrategy = "least-trimmed"\nbyzantine_share = 0.3\n'
    held, missing = said(f'{rule}[train]\nstart = "lda"\n', 10)
    assert "class statistics by themselves and beside the others'" in held
    assert "a rule against hostile sites for class statistics" in missing
    held, missing = said(f'{rule}screening = false\n[train]\nstart = "lda"\n', 10)
    assert "class statistics" not in held
    assert "screening of class statistics" in missing


def test_a_section_that_is_none_breaks_nothing():
    assert said('privacy = 3\ntrain = "x"\nmodel = [1]\n')


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_recipe_that_is_none_says_nothing_and_breaks_nothing(text):
    against_poisoning(text, 5)
