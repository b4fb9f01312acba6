"""Length and direction of an update against earlier rounds: whoever arrives first."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.protocol.settings import FederationSettings
from fieldmark.server.screening.comparison import UnsoundUpdate, UpdateHistory
from fieldmark.server.strategies import SoundReply

SENT = {"w": np.zeros(400, np.float32), "bn.running_mean": np.zeros(2, np.float32)}
AHEAD = np.ones(400, np.float32) / 20


def update(seed, size=1.0, against=False):
    generator = np.random.default_rng(seed)
    step = AHEAD + generator.normal(0, 0.05, 400).astype(np.float32)
    step = (size * step / np.linalg.norm(step)).astype(np.float32)
    return {
        "w": SENT["w"] + (-step if against else step),
        "bn.running_mean": SENT["bn.running_mean"],
    }


def history(rounds=3, sites=6, rates=None, **changes):
    found = UpdateHistory(FederationSettings(**changes))
    for number in range(rounds):
        rate = rates[number] if rates else 1.0
        found.begin(SENT, lambda _, rate=rate: rate)
        for site in range(sites):
            found.judge(SoundReply(f"s{site}", 50, update(100 * number + site, rate)))
        found.close({"w": AHEAD, "bn.running_mean": SENT["bn.running_mean"]})
    found.begin(SENT, lambda _: rates[rounds] if rates else 1.0)
    return found


def verdict(found, tensors, weight=50):
    try:
        found.judge(SoundReply("x", weight, tensors))
    except UnsoundUpdate as error:
        return error.what
    return "sound"


@pytest.mark.parametrize(
    ("tensors", "weight", "said"),
    [
        (update(7), 50, "sound"),
        (update(7, size=20), 50, "norm over its learning rate is 20"),
        ({**SENT}, 50, "hardly differs"),
        (update(7, against=True), 50, "points against"),
        ({**update(7), "w": np.full(400, np.nan, np.float32)}, 50, "'w' is not finite"),
        ({**update(7), "bn.running_mean": np.array([0, np.inf], np.float32)}, 50, "not finite"),
        ({**update(7), "w": np.full(400, 3e38, np.float32)}, 50, "so long"),
        (update(7), 500_000, "weight is 5e"),
    ],
    ids=["sound", "long", "sent back", "turned round", "NaN", "infinite statistic", "huge",
         "claims much"],
)  # fmt: skip
def test_an_update_unlike_the_others_is_refused_with_its_figures(tensors, weight, said):
    assert said in verdict(history(), tensors, weight)


def test_in_the_first_round_only_absolute_bounds_hold():
    first = history(rounds=0, max_rms=0.5)
    assert verdict(first, update(1, against=True)) == "sound"
    assert verdict(first, update(1, size=9)) == "sound"
    assert "root mean square is 1, above 0.5" in verdict(first, update(1, size=20))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)))
def test_a_verdict_does_not_depend_on_who_came_first(order):
    replies = [update(n, size=2.0**n) for n in range(8)]
    in_order, shuffled = history(), history()
    expected = {n: verdict(in_order, replies[n]) for n in range(8)}
    assert {n: verdict(shuffled, replies[n]) for n in order} == expected
    assert len({v == "sound" for v in expected.values()}) == 2


def test_norms_follow_the_learning_rate():
    rates = [0.01, 0.02, 0.05, 1.0]
    found = history(rates=rates, max_norm_ratio=4)
    assert verdict(found, update(3, size=1.0)) == "sound"
    assert "above" in verdict(found, update(3, size=5.0))


def test_what_was_refused_or_belongs_to_a_void_round_is_no_measure():
    found = history()
    for _ in range(30):
        assert verdict(found, update(5, size=30)) != "sound"
    found.begin(SENT, lambda _: 1.0)
    for site in range(30):
        found.judge(SoundReply(f"s{site}", 50, update(site, size=7.9)))
    found.begin(SENT, lambda _: 1.0)
    assert "above" in verdict(found, update(5, size=8.1))


def test_it_goes_on_from_a_checkpoint_as_it_was():
    found = history()
    again = UpdateHistory(found.settings, json.loads(json.dumps(found.kept)), found.direction)
    again.begin(SENT, lambda _: 1.0)
    for number in range(8):
        tensors = update(number, size=2.0**number, against=number % 2 == 1)
        assert verdict(again, tensors) == verdict(found, tensors)


def test_a_variates_change_is_measured_too():
    found = UpdateHistory(FederationSettings())
    for number in range(3):
        found.begin(SENT, lambda _: 1.0)
        for site in range(5):
            tensors = {**update(10 * number + site), "control/w": AHEAD}
            found.judge(SoundReply(f"s{site}", 50, tensors))
        found.close({"w": AHEAD, "bn.running_mean": SENT["bn.running_mean"]})
    found.begin(SENT, lambda _: 1.0)
    assert verdict(found, {**update(1), "control/w": AHEAD}) == "sound"
    assert "variates' norm" in verdict(found, {**update(1), "control/w": 100 * AHEAD})
    assert "not finite" in verdict(found, {**update(1), "control/w": np.nan * AHEAD})


def test_where_most_are_unlike_the_others_it_is_the_comparison_that_is_wrong():
    found = history()
    for number in range(5):
        assert verdict(found, update(number, size=40)) != "sound"
    assert found.void()
    found.begin(SENT, lambda _: 1.0)
    assert verdict(found, update(9, size=40)) == "sound"
    few = history()
    for site in range(4):
        few.judge(SoundReply(f"s{site}", 50, update(site)))
    assert verdict(few, update(9, size=40)) != "sound"
    assert not few.void()
    few.begin(SENT, lambda _: 1.0)
    assert verdict(few, update(9, size=40)) != "sound"


def a_round(found, others, **named):
    """Judge a round of five ordinary sites and of named ones; closes it."""
    said = {}
    found.begin(SENT, lambda _: 1.0)
    for number in range(5):
        found.judge(SoundReply(f"s{number}", 50, update(others + number)))
    for site, (tensors, weight) in named.items():
        try:
            found.judge(SoundReply(site, weight, tensors))
            said[site] = "sound"
        except UnsoundUpdate as error:
            said[site] = error.what
    found.close({"w": AHEAD, "bn.running_mean": SENT["bn.running_mean"]})
    return said


def test_a_known_site_is_refused_for_its_direction_only_the_second_time():
    found = history()
    assert a_round(found, 500, odd=(update(1), 50)) == {"odd": "sound"}
    assert a_round(found, 510, odd=(update(2, against=True), 50)) == {"odd": "sound"}
    assert a_round(found, 520, odd=(update(3), 50)) == {"odd": "sound"}
    # A site cannot alternate: the record is of its last rounds.
    assert "points against" in a_round(found, 530, odd=(update(4, against=True), 50))["odd"]
    # Refused ones are on record, too.
    assert "points against" in a_round(found, 540, odd=(update(5, against=True), 50))["odd"]


def test_a_record_survives_a_checkpoint():
    found = history()
    a_round(found, 500, odd=(update(1), 50))
    a_round(found, 510, odd=(update(2, against=True), 50))
    again = UpdateHistory(found.settings, json.loads(json.dumps(found.kept)), found.direction)
    assert "points against" in a_round(again, 520, odd=(update(3, against=True), 50))["odd"]


def test_one_closed_round_of_others_condemns_no_direction():
    # The second round is the first with cosines, so at its end one round has been compared.
    assert verdict(history(rounds=2), update(7, against=True)) == "sound"
    assert "points against" in verdict(history(rounds=3), update(7, against=True))


def test_who_always_pointed_against_is_refused_as_early_as_before():
    found = history(rounds=0)
    told = [
        a_round(found, 600 + 10 * n, odd=(update(n, against=True), 50))["odd"] for n in range(3)
    ]
    assert told[:2] == ["sound", "sound"]
    assert "points against" in told[2]


def test_an_update_that_shrinks_with_what_is_left_to_learn_is_not_idle():
    found = history()
    for number, size in enumerate((0.02, 0.004, 0.0009, 0.0004)):
        assert a_round(found, 700 + 10 * number, odd=(update(number, size), 50))["odd"] == "sound"
    assert a_round(found, 750, odd=({**SENT}, 50))["odd"] == "sound"
    assert "hardly differs" in a_round(found, 760, odd=({**SENT}, 50))["odd"]


def test_a_longer_update_is_allowed_to_a_larger_site_up_to_a_bound():
    found = history()
    assert "above" in verdict(found, update(7, size=9), weight=50)
    assert verdict(found, update(7, size=9), weight=100) == "sound"
    assert verdict(found, update(7, size=31), weight=900) == "sound"
    assert "above" in verdict(found, update(7, size=33), weight=900)
