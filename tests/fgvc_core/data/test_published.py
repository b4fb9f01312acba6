import json

import pytest
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.published import beside_published

from .picture_trees import real_data, write_cub


def test_a_part_of_a_data_set_is_told_from_the_whole():
    assert beside_published("cub", {"train": 5994, "test": 5794, "pool": 0}).startswith("As pub")
    part = beside_published("cub", {"train": 1500, "test": 1389, "pool": 0})
    assert (
        part == "Published were 5,994 train, 5,794 test; listed here are 1,500 train, 1,389 test."
    )
    assert beside_published("ham10000", {"train": 7455, "test": 2560}).endswith("10,015 pictures.")
    assert "listed here are 7" in beside_published("ham10000", {"train": 5, "test": 2})
    assert beside_published("folder", {"train": 1, "test": 1}) == ""


def checked(*arguments):
    return CliRunner().invoke(data_app, ["check", *map(str, arguments)], terminal_width=100)


def test_the_check_says_so(tmp_path):
    write_cub(tmp_path)
    assert "Published were 5,994 train, 5,794 test; listed here are 6 train, 6 test." in (
        checked(tmp_path).output
    )
    assert json.loads(checked(tmp_path, "--json").output)["published"].startswith("Published were")


@pytest.mark.parametrize(
    ("folder", "counts"),
    [
        ("cub200_annotations", "5,994 train, 5,794 test"),
        ("cars_devkit", "8,144 train, 8,041 test"),
        ("aircraft_lists", "6,667 train, 3,333 test"),
    ],
)
def test_real_lists_have_the_published_counts_and_name_what_is_missing(folder, counts):
    result = checked(real_data(folder))
    assert f"As published: {counts}." in result.output
    assert "pictures are missing: '" in result.output
    assert result.exit_code == 3
