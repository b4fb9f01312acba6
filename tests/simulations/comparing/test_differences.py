import numpy as np
import pytest

from fgvc_core.inference.intervals import by_subject, exact, top1_of, top1_parts
from fieldmark.simulations.comparing.differences import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    Estimate,
    differences,
    draw_rows,
    in_words,
)

K = 4


def answers(labels_N, share, seed):
    """Answers that are right for a share of the pictures."""
    generator = np.random.default_rng(seed)
    wrong_N = generator.random(len(labels_N)) >= share
    return np.where(wrong_N, (labels_N + 1) % K, labels_N)


def truth(count):
    return np.arange(count) % K


def told(rows, other, metric="top1"):
    return differences(rows, "federated")[other][metric]


def test_values_are_exact_and_bounds_hold_them():
    labels_N = truth(200)
    right = answers(labels_N, 0.7, 1)
    rows = draw_rows({"federated": [[right]]}, labels_N, [str(n) for n in range(200)], K, 0)
    found = rows["federated"].estimate("top1")
    assert found.value == (right == labels_N).mean()
    # The normal approximation of a share of 200.
    deviation = (found.value * (1 - found.value) / 200) ** 0.5
    assert found.low == pytest.approx(found.value - 1.96 * deviation, abs=0.015)
    assert found.high == pytest.approx(found.value + 1.96 * deviation, abs=0.015)


def test_answers_that_are_all_right_are_not_certain():
    """As ``fieldmark evaluate`` says of the same answers (Clopper and Pearson), by its own code."""
    labels = np.arange(12) % 3
    names = [str(n) for n in range(12)]
    rows = draw_rows({"a": [[labels]], "b": [[labels]]}, labels, names, 3, seed=1)
    found = rows["a"].estimate("top1")
    shown = by_subject(top1_parts(labels == labels), names, top1_of)
    assert (found.low, found.high) == (shown.low, shown.high)
    assert found.low == pytest.approx(0.735, abs=1e-3)


@pytest.mark.parametrize(("count", "most"), [(12, 0.265), (400, 0.0092)])
def test_that_nobody_was_answered_differently_is_not_certain_either(count, most):
    """Two-sided 95 %: none of n subjects has at most 1 - 0.025^(1/n) of all behind it."""
    labels = np.arange(count) % 3
    models = {"federated": [[labels]], "same": [[labels.copy()]]}
    rows = draw_rows(models, labels, [str(n) for n in range(count)], 3, seed=1)
    for metric in ("top1", "macro_f1"):
        found = told(rows, "same", metric)
        assert (found["value"], found["told"]) == (0.0, NO_DIFFERENCE)
        assert found["high"] == -found["low"] == pytest.approx(1 - 0.025 ** (1 / count))
        assert found["high"] == pytest.approx(most, abs=1e-3)


def test_the_same_answers_are_no_difference_and_a_large_gap_is_one():
    labels_N = truth(400)
    good, bad = answers(labels_N, 0.9, 1), answers(labels_N, 0.6, 2)
    models = {"federated": [[good]], "same": [[good.copy()]], "worse": [[bad]]}
    rows = draw_rows(models, labels_N, [str(n) for n in range(400)], K, 0)
    most = exact(0.0, 400).high
    assert told(rows, "same") == {"value": 0, "low": -most, "high": most, "told": NO_DIFFERENCE}
    assert told(rows, "worse")["told"] == told(rows, "worse", "macro_f1")["told"] == BETTER
    assert differences(rows, "worse")["federated"]["top1"]["told"] == WORSE


def test_pairing_finds_what_two_separate_intervals_would_not():
    labels_N = truth(300)
    one = answers(labels_N, 0.7, 3)
    # Right on the same pictures and on twelve more: their own intervals overlap widely.
    better = one.copy()
    better[np.flatnonzero(one != labels_N)[:12]] = labels_N[np.flatnonzero(one != labels_N)[:12]]
    rows = draw_rows(
        {"federated": [[better]], "other": [[one]]}, labels_N, [str(n) for n in range(300)], K, 0
    )
    assert rows["federated"].estimate("top1").low < rows["other"].estimate("top1").high
    assert told(rows, "other")["told"] == BETTER


def test_pictures_of_one_subject_are_drawn_together():
    labels_N = np.repeat(truth(40), 10)
    apart_N = np.repeat(np.arange(40) < 24, 10)
    one, other = np.where(apart_N, labels_N, (labels_N + 1) % K), (labels_N + 1) % K
    models = {"federated": [[one]], "other": [[other]]}
    widths = []
    for subjects in ([str(n // 10) for n in range(400)], [str(n) for n in range(400)]):
        found = told(draw_rows(models, labels_N, subjects, K, 0), "other")
        widths.append(found["high"] - found["low"])
    # Ten equal pictures say as much as one: sqrt(10) times as wide.
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.15)


def test_seeds_that_differ_widen_the_interval():
    labels_N = truth(200)
    names = [str(n) for n in range(200)]
    shares = (0.9, 0.5, 0.7)
    several = [[answers(labels_N, share, n)] for n, share in enumerate(shares)]
    rows = draw_rows({"federated": several}, labels_N, names, K, 0)
    found = rows["federated"].estimate("top1")
    means = [float((one[0] == labels_N).mean()) for one in several]
    assert found.value == pytest.approx(np.mean(means))
    one = draw_rows({"federated": [several[2]]}, labels_N, names, K, 0)["federated"]
    assert found.high - found.low > 1.5 * (one.estimate("top1").high - one.estimate("top1").low)


def test_a_row_of_several_models_is_their_mean():
    labels_N = truth(100)
    sites = [answers(labels_N, 0.8, n) for n in range(3)]
    rows = draw_rows({"local": [sites]}, labels_N, [str(n) for n in range(100)], K, 0)
    assert rows["local"].values["top1"] == pytest.approx(
        np.mean([(one == labels_N).mean() for one in sites])
    )


def test_nine_subjects_are_too_few_and_ten_are_not():
    for count, words in ((9, TOO_FEW), (10, BETTER)):
        labels_N = truth(count)
        models = {"federated": [[labels_N]], "other": [[(labels_N + 1) % K]]}
        rows = draw_rows(models, labels_N, [str(n) for n in range(count)], K, 0)
        assert told(rows, "other")["told"] == words
        assert told(rows, "other")["value"] == 1


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.0, 0.1, NO_DIFFERENCE), (-0.1, 0.0, NO_DIFFERENCE), (-0.1, 0.1, NO_DIFFERENCE),
     (0.001, 0.1, BETTER), (-0.1, -0.001, WORSE)],
)  # fmt: skip
def test_an_interval_that_holds_zero_is_no_difference(low, high, words):
    assert in_words(Estimate((low + high) / 2, low, high)) == words


def test_one_seed_gives_the_same_draws():
    labels_N = truth(60)
    models = {"federated": [[answers(labels_N, 0.6, 1)]]}
    names = [str(n) for n in range(60)]
    one, two = (draw_rows(models, labels_N, names, K, 5)["federated"] for _ in range(2))
    np.testing.assert_array_equal(one.drawn["macro_f1"], two.drawn["macro_f1"])
