import pytest

from fieldmark.simulations.sweeping.table import summarise
from fieldmark.simulations.sweeping.telling import APART, BEST, NOT_APART, in_words, tell_apart


def runs(pictures=500, **scores):
    """One run per seed of each value of ``alpha``."""
    return [
        {"run": f"{alpha}-{seed}", "settings": {"partition.alpha": alpha[1:]}, "seed": seed,
         "state": "done", "top1": top1, "macro_f1": top1, "sites_top1": None, "epsilon": None,
         "bytes": 1, "rounds": 1, "seconds": 1.0, "test_examples": pictures}
        for alpha, values in scores.items() for seed, top1 in enumerate(values)
    ]  # fmt: skip


def told(rows):
    table = summarise(rows)
    marks = tell_apart(rows, table, "top1")
    return [mark and mark["told"] for mark in marks], in_words(table, marks, "top1")


def test_96_8_with_0_9_is_not_crowned_over_96_5_with_0_5():
    rows = runs(a1=[0.959, 0.968, 0.977], a5=[0.970, 0.965, 0.960], a9=[0.60, 0.61, 0.62])
    table = summarise(rows)
    assert [round(e["top1"], 3) for e in table] == [0.968, 0.965, 0.61]
    assert [round(e["top1_deviation"], 3) for e in table[:2]] == [0.009, 0.005]
    marks, words = told(rows)
    assert marks == [BEST, NOT_APART, APART]
    assert words == "alpha 1 has the highest mean, and 1 of 2 others is not told apart from it"
    assert told(rows[:6])[1] == "no setting is told apart from the highest mean, alpha 1"


def test_a_small_difference_under_every_seed_is_one():
    # Seeds differ by ten points, and the settings by half a point under each: they are paired.
    marks, words = told(runs(a1=[0.805, 0.906, 0.7045], a5=[0.80, 0.90, 0.70]))
    assert marks == [BEST, APART]
    assert words == "alpha 1 is best"


@pytest.mark.parametrize(("other", "expected"), [(0.80, NOT_APART), (0.60, APART)])
def test_with_one_seed_only_the_test_pictures_speak(other, expected):
    assert told(runs(a1=[0.82], a5=[other]))[0] == [BEST, expected]


def test_without_test_pictures_one_seed_says_nothing():
    assert told(runs(pictures=None, a1=[0.9], a5=[0.1]))[0] == [BEST, NOT_APART]


def test_settings_without_a_score_are_left_out():
    marks, words = told(runs(a1=[0.9, 0.91], a5=[None, None]))
    assert marks == [BEST, None]
    assert words == "alpha 1"
    assert told(runs(a1=[None])) == ([None], "")


def test_equal_scores_under_all_seeds_are_not_told_apart():
    assert told(runs(a1=[0.9, 0.8], a5=[0.9, 0.8]))[0] == [BEST, NOT_APART]
