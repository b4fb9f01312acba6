import pytest
from drawn_trees import disks, patches, stripes


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Name -> root of the three drawn trees."""
    out = tmp_path_factory.mktemp("trees")
    makers = {"disks": disks, "stripes": stripes, "patches": patches}
    return {name: make(out / name) for name, make in makers.items()}
