import pytest

from fieldmark.simulations.bench import growth


def test_the_exponent_is_that_of_the_cost():
    sizes = {25: 0.5, 50: 1.0, 100: 2.0, 200: 4.0}
    assert abs(growth.exponent(list(sizes), list(sizes.values())) - 1) < 1e-9
    assert abs(growth.exponent([1, 2, 4], [1, 4, 16]) - 2) < 1e-9
    assert abs(growth.exponent([1, 2, 4], [7, 7, 7])) < 1e-9


def test_a_figure_names_the_costs_and_what_is_allowed():
    (entry,) = growth.growth("sites_round", "s", "a round", {10: 1.0, 20: 4.0}).values()
    assert entry["value"] == 2.0
    assert entry["reference"] == growth.MOST
    assert entry["ratio"] > 1
    assert "10: 1 s, 20: 4 s" in entry["how"]


@pytest.mark.slow
def test_the_bench_runs_on_small_sizes(monkeypatch):
    for name, sizes in (("SITES", (2, 4)), ("PICTURES", (8, 16)), ("CLASSES", (20, 40)),
                        ("MEGABYTES", (1, 2)), ("ROUNDS", 1)):  # fmt: skip
        monkeypatch.setattr(growth, name, sizes)
    figures = growth.bench_growth()
    assert {name.split("_")[0] for name in figures} == {"sites", "pictures", "classes", "model"}
    assert figures["sites_bytes"]["value"] == 1.0
    assert figures["pictures_bytes"]["value"] == 0.0
