from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.bench import NAMES
from fieldmark.simulations.bench.selection import RECIPE, Study


def test_every_way_starts_from_the_same_pictures_and_ends_with_as_many_labels():
    recipe = parse_recipe(
        RECIPE,
        ["data.image_size=32", "data.fieldmarks_train=24", "data.fieldmarks_test=12", "seed=1"],
    )
    assert "selection" in NAMES
    study = Study(recipe, first=12, step=12, steps=1, passes=1)
    # Where all that is left is chosen, it makes no difference by which way.
    scores = [study.scores(method) for method in ("margin", "core-set", "random")]
    assert scores[0] == scores[1] == scores[2]
    assert all(0 <= score <= 1 for score in scores[0])
