import numpy as np
import pytest

from fgvc_core.privacy.posterior import ExactSums, head_of_sums, infer_means, linear_scores
from fgvc_core.privacy.settings import PrivacySettings

SITES, CLASSES, DIRECTIONS, SPREAD = 5, 20, 32, 0.5
NOISE = {"sum": 2.0, "count": 4.0}


def made_up(seed, sum_noise, count_noise, per_cell=12):
    """Class means of one size, vectors around them, noisy sums; half of the cells empty."""
    random = np.random.default_rng(seed)
    means = random.standard_normal((CLASSES, DIRECTIONS))
    means *= np.sqrt(1 - SPREAD) / np.linalg.norm(means, axis=1, keepdims=True)
    counts = random.poisson(per_cell, (SITES, CLASSES)) * (random.random((SITES, CLASSES)) < 0.5)
    sums = counts[:, :, None] * means
    spread = np.sqrt(counts * SPREAD / DIRECTIONS)[:, :, None]
    sums = sums + random.standard_normal(sums.shape) * spread
    sums = sums + random.standard_normal(sums.shape) * sum_noise
    noisy = counts + random.standard_normal(counts.shape) * count_noise
    return means, counts, sums, noisy


def infer(sums, counts, sum_noise, count_noise):
    units = np.full(SITES, counts.sum() / SITES).clip(1).astype(np.int64)
    return infer_means(sums, counts, sum_noise, count_noise, SPREAD, units)


def cosine(one, other):
    return np.mean(
        (one * other).sum(axis=1)
        / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1) + 1e-12)
    )


def test_without_noise_to_speak_of_the_means_are_found():
    means, counts, sums, noisy = made_up(1, 1e-3, 1e-3, per_cell=200)
    found = infer(sums, noisy, 1e-3, 1e-3)
    seen = counts.sum(axis=0) > 0
    assert seen.sum() > 15
    assert cosine(found.means_KP[seen], means[seen]) > 0.99
    # Counts beyond 64 are looked for in steps of some per cent.
    assert (np.abs(found.counts_SK - counts) < 0.1 + 0.04 * counts).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_noise_they_are_closer_than_plain_noisy_means(seed):
    means, _, sums, noisy = made_up(seed, NOISE["sum"], NOISE["count"])
    found = infer(sums, noisy, NOISE["sum"], NOISE["count"])
    plain = sums.sum(axis=0) / noisy.sum(axis=0).clip(1)[:, None]
    assert ((found.means_KP - means) ** 2).sum() < 0.7 * ((plain - means) ** 2).sum()
    assert cosine(found.means_KP, means) > cosine(plain, means)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_they_tell_more_vectors_apart(seed):
    means, _, sums, noisy = made_up(seed, NOISE["sum"], NOISE["count"], per_cell=20)
    random = np.random.default_rng(100 + seed)
    labels = np.repeat(np.arange(CLASSES), 40)
    noise = random.standard_normal((len(labels), DIRECTIONS)) * np.sqrt(SPREAD / DIRECTIONS)
    vectors = means[labels] + noise
    weights, biases = linear_scores(infer(sums, noisy, NOISE["sum"], NOISE["count"]), SPREAD)
    right = ((vectors @ weights.T + biases).argmax(axis=1) == labels).mean()
    plain = sums.sum(axis=0)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert right > ((vectors @ plain.T).argmax(axis=1) == labels).mean()


def test_its_own_uncertainty_is_about_its_error():
    means, _, sums, noisy = made_up(7, NOISE["sum"], NOISE["count"])
    found = infer(sums, noisy, NOISE["sum"], NOISE["count"])
    ratio = ((found.means_KP - means) ** 2).sum() / found.variances_KP.sum()
    assert 0.5 < ratio < 2


def test_where_all_is_noise_nothing_is_claimed_and_nothing_is_no_number():
    random = np.random.default_rng(3)
    sums = random.standard_normal((SITES, CLASSES, DIRECTIONS)) * 1e3
    counts = random.standard_normal((SITES, CLASSES)) * 1e3
    found = infer_means(sums, counts, 1e3, 1e3, SPREAD, np.full(SITES, 100))
    for by_counts in (False, True):
        weights, biases = linear_scores(found, SPREAD, by_counts)
        assert np.isfinite(weights).all()
        assert np.isfinite(biases).all()
    assert (found.counts_SK >= 0).all()
    assert np.linalg.norm(found.means_KP, axis=1).max() < 1


def test_one_site_one_class_and_zeros_are_no_special_case():
    found = infer_means(np.zeros((1, 1, 2)), np.zeros((1, 1)), 1.0, 1.0, SPREAD, np.array([1]))
    assert np.isfinite(found.means_KP).all()
    assert np.isfinite(linear_scores(found, SPREAD)[0]).all()


def test_classes_weigh_by_their_counts_where_asked():
    means, _, sums, noisy = made_up(5, 0.1, 0.1)
    found = infer(sums, noisy, 0.1, 0.1)
    order = found.counts_SK.sum(axis=0)
    _, alike = linear_scores(found, SPREAD)
    _, weighed = linear_scores(found, SPREAD, by_counts=True)
    gained = weighed - alike
    assert (np.argsort(gained) == np.argsort(order, kind="stable")).mean() > 0.5
    assert gained[order.argmax()] == gained.max()
    assert len(means) == CLASSES


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exact_sums_of_one_site_beat_its_noisy_ones(seed):
    means, counts, sums, noisy = made_up(seed, NOISE["sum"], NOISE["count"])
    # The exact sums of site 0, drawn around the same means.
    random = np.random.default_rng(seed)
    spread = np.sqrt(counts[0] * SPREAD / DIRECTIONS)[:, None]
    exact = ExactSums(
        counts[0][:, None] * means + random.standard_normal(means.shape) * spread,
        counts[0].astype(float),
    )
    units = np.full(SITES - 1, 100)
    given = (NOISE["sum"], NOISE["count"], SPREAD, units)
    own = infer_means(sums[1:], noisy[1:], *given, exact)
    without = infer(sums, noisy, NOISE["sum"], NOISE["count"])
    held = counts[0] > 0
    assert ((own.means_KP - means) ** 2)[held].sum() < 0.7 * ((without.means_KP - means) ** 2)[
        held
    ].sum()


def test_exact_sums_of_nothing_change_nothing():
    _, _, sums, noisy = made_up(4, NOISE["sum"], NOISE["count"])
    given = (sums, noisy, NOISE["sum"], NOISE["count"], SPREAD, np.full(SITES, 100))
    nothing = ExactSums(np.zeros((CLASSES, DIRECTIONS)), np.zeros(CLASSES))
    assert (infer_means(*given, nothing).means_KP == infer_means(*given).means_KP).all()


def test_with_much_exactly_the_head_names_what_the_exact_means_are_nearest_to():
    means, _, sums, noisy = made_up(5, 1e3, 1e3)
    many = np.full(CLASSES, 1e4)
    rows = np.concatenate([sums, 0.1 * noisy[:, :, None]], axis=2)
    privacy = PrivacySettings(epsilon=1.0, within_spread=SPREAD)
    exact = ExactSums(1e4 * means, many)
    head = head_of_sums(rows, 1e3, np.full(SITES, 100.0), privacy, exact)
    scores = means @ head["head.weight"].T + head["head.bias"]
    assert (scores.argmax(axis=1) == np.arange(CLASSES)).all()


def test_the_prior_of_a_sites_own_head_is_its_own_shares():
    _, _, sums, noisy = made_up(6, NOISE["sum"], NOISE["count"])
    rows = np.concatenate([sums, 0.1 * noisy[:, :, None]], axis=2)
    privacy = PrivacySettings(epsilon=1.0, within_spread=SPREAD)
    units = np.full(SITES, 100.0)
    counts = np.zeros(CLASSES)
    counts[3] = 1e-9
    plain = head_of_sums(rows, NOISE["sum"], units, privacy)["head.bias"]
    many = np.where(np.arange(CLASSES) == 3, 99.0, 0.0)
    exact = ExactSums(np.zeros((CLASSES, DIRECTIONS)), counts)
    alike = head_of_sums(rows, NOISE["sum"], units, privacy, exact)["head.bias"]
    np.testing.assert_allclose(alike, plain, atol=1e-3)
    favored = linear_scores(
        infer(sums, noisy, NOISE["sum"], NOISE["count"]), SPREAD, prior_K=(many + 1) / 119
    )[1]
    uniform = linear_scores(infer(sums, noisy, NOISE["sum"], NOISE["count"]), SPREAD)[1]
    gained = favored - uniform
    np.testing.assert_allclose(gained[3] - np.delete(gained, 3), np.log(100), atol=1e-6)
