"""The benchmark of features: what is compared are the same pictures, decoded in two ways."""

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.cache import cache_folder
from fgvc_core.experiment import make_table
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.bench import NAMES, features


@pytest.fixture(scope="module")
def table():
    few = ["data.image_size=128", "data.fieldmarks_train=24", "data.fieldmarks_test=12"]
    return make_table(parse_recipe("", few), cache_folder())


def test_the_files_are_the_tables_pictures_and_decode_at_half_size_or_whole(table, tmp_path):
    assert "features" in NAMES
    scaled = features.as_jpegs(table, tmp_path / "pictures")
    for position in (0, 30):
        drawn = table.source.picture(int(table.rows[position]))
        stored = np.array(Image.open(tmp_path / "pictures" / f"{position}.jpg"))
        assert stored.shape == drawn.shape
        assert np.abs(stored.astype(float) - drawn).mean() < 8
    assert scaled.source.picture(0, 64).shape == (64, 64, 3)
    whole = features.Whole(scaled.source)
    assert whole.picture(0, 64).shape == (128, 128, 3)
    assert whole.content_key(0) == scaled.source.content_key(0)
