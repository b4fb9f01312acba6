from dataclasses import replace

import pytest
from drawn_trees import disks, patches, stripes

from fieldmark.simulations.beginning.looking import look


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Name -> root of the three drawn trees."""
    out = tmp_path_factory.mktemp("trees")
    makers = {"disks": disks, "stripes": stripes, "patches": patches}
    return {name: make(out / name) for name, make in makers.items()}


@pytest.fixture(scope="session")
def seen(trees):
    """Name -> what is seen of it, on a machine that has the weights."""
    return {name: replace(look(root, {}), weights=True) for name, root in trees.items()}
