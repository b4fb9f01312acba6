from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.server.rounds.cohort import PATIENCE_OF_A_SITE, draw_cohort, wanted


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.floats(0.05, 0.9), st.integers(0, 10_000))
def test_no_site_waits_for_ever(count, fraction, seed):
    sites = [f"site-{n}" for n in range(count)]
    last, longest = {}, 0
    size = len(draw_cohort(sites, fraction, seed, 1))
    fair = -(-count // size)
    for round_ in range(1, 12 * fair):
        cohort = draw_cohort(sites, fraction, seed, round_, last_drawn=last)
        longest = max([longest, *(round_ - last.get(site, 0) for site in cohort)])
        last.update(dict.fromkeys(cohort, round_))
    waiting = max(12 * fair - last.get(site, 0) for site in sites)
    assert max(longest, waiting) <= (PATIENCE_OF_A_SITE + 1) * fair + 1


def test_more_are_drawn_where_dropouts_are_expected():
    sites = [f"site-{n}" for n in range(100)]
    assert len(draw_cohort(sites, 0.2, 7, 1)) == wanted(100, 0.2) == 20
    assert len(draw_cohort(sites, 0.2, 7, 1, expected_dropout=0.2)) == 25
    assert len(draw_cohort(sites, 0.9, 7, 1, expected_dropout=0.5)) == 100


def test_a_resumed_run_draws_what_the_uninterrupted_one_would():
    sites, last = [f"site-{n}" for n in range(10)], {}
    for round_ in range(1, 8):
        cohort = draw_cohort(sites, 0.3, 7, round_, last_drawn=last)
        again = draw_cohort(sites[::-1], 0.3, 7, round_, last_drawn=dict(last))
        assert cohort == again
        last.update(dict.fromkeys(cohort, round_))


def test_as_many_are_drawn_as_a_sum_needs_if_they_are_there():
    sites = [f"site-{n}" for n in range(10)]
    assert len(draw_cohort(sites, 0.2, 7, 1, least=5)) == 5
    assert len(draw_cohort(sites, 0.2, 7, 1, least=5, expected_dropout=0.5)) == 10
    assert len(draw_cohort(sites[:3], 0.2, 7, 1, least=5)) == 3
    assert len(draw_cohort(sites, 0.8, 7, 1, least=5)) == 8
