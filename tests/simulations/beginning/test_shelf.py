from imports_lab import loaded

from fieldmark.simulations.beginning.shelf import RECIPES, shipped


def test_every_shipped_recipe_is_listed_once_with_a_sentence():
    found = shipped()
    assert {one.path for one in found} == set(RECIPES.rglob("*.toml"))
    for one in found:
        assert 20 < len(one.shows) < 400, one.name
        assert one.shows[-1] in ".?", one.name
        assert one.gives


def test_the_demo_comes_first_and_needs_no_pictures():
    demo, *_ = shipped()
    assert demo.name == "demo"
    assert not any("data.path" in need for need in demo.needs)


def test_what_a_recipe_needs_follows_from_it():
    needs = {one.name: one.needs for one in shipped()}
    assert needs["cub50"] == ("CUB-200-2011 (data.path)", "extra 'weights'")
    assert needs["ham10000-dp"] == ("HAM10000 (data.path)", "extra 'weights'")
    assert "extra 'pretraining'" in needs["few-labels"]
    assert "ImageNet weights from the hub, a GPU" in needs["studies/cars-224"]


def test_what_a_recipe_gives_follows_from_it():
    gives = {one.name: one.gives for one in shipped()}
    assert gives["faults"] == "a table of attacks by defense"
    assert gives["cub50-best"] == "a model of 5 sites without a round of training"
    assert gives["demo-dp"].startswith("a model of 5 sites at epsilon 4 each")


def test_listing_them_takes_no_package_that_works_on_pictures():
    # Three of its four seconds were torchvision's and its compiler's.
    brought = loaded("fieldmark.simulations.beginning.shelf as shelf; shelf.shipped()")
    assert {"torchvision", "timm"}.isdisjoint(brought)
