import numpy as np
import pytest

from fgvc_core.privacy.posterior import infer_means, linear_scores

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
