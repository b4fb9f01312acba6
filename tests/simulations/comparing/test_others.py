import pytest

from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.comparing.others import budget, done_here


@pytest.mark.parametrize(
    ("rounds", "sites", "fraction", "expected"),
    [(48, 5, 1.0, 48), (20, 1000, 0.05, 1), (30, 10, 0.3, 9), (1, 9, 0.1, 1), (0, 5, 0.1, 0),
     # A cohort is a whole number of sites: one of three.
     (30, 3, 0.1, 10)],
)  # fmt: skip
def test_the_budget_is_what_one_site_trains_on_average(rounds, sites, fraction, expected):
    assert budget(rounds, sites, fraction) == expected


def test_what_needs_a_run_of_its_own_is_not_done_in_a_worker(tiny):
    assert done_here(tiny)
    for start in ("means", "lda"):
        assert done_here(parse_recipe(tiny.to_toml(), [f"train.start={start}"]))
    private = ["privacy.epsilon=4.0", "privacy.method=gradients", "train.optimizer=sgd"]
    assert not done_here(parse_recipe(tiny.to_toml(), private))
    # A start that is added later must not silently be left out.
    train = tiny.train.model_copy(update={"start": "something new"})
    assert not done_here(tiny.model_copy(update={"train": train}))
