import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.errors import ConfigurationError
from fieldmark.simulations.beginning.choosing import Choice
from fieldmark.simulations.beginning.writing import recipe_text, write_recipe

CHOICES = [
    Choice("model", "head", "linear", "Why the head."),
    Choice("", "name", "mine", "Its name."),
    Choice("model", "mirrored", True, "Why mirrored."),
]


def test_each_setting_stands_below_its_reason():
    text = recipe_text(CHOICES, ["A head."])
    lines = text.splitlines()
    assert lines[0] == "# A head."
    assert lines[lines.index('head = "linear"') - 1] == "# Why the head."
    assert tomllib.loads(text) == {"name": "mine", "model": {"head": "linear", "mirrored": True}}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_no_reason_and_no_name_breaks_out_of_its_line(why, path):
    text = recipe_text([Choice("data", "path", path, why)], [why])
    assert tomllib.loads(text) == {"data": {"path": path}}


def test_a_recipe_is_never_overwritten(tmp_path):
    path, recipe = write_recipe(tmp_path / "mine", recipe_text(CHOICES, []))
    assert recipe.name == "mine"
    with pytest.raises(ConfigurationError, match="already"):
        write_recipe(tmp_path / "mine", recipe_text(CHOICES, []))
    assert path.read_text() == recipe_text(CHOICES, [])


def test_what_cannot_be_read_is_not_written(tmp_path):
    with pytest.raises(ConfigurationError):
        write_recipe(tmp_path, recipe_text([Choice("model", "head", "no-such", "")], []))
    assert not list(tmp_path.iterdir())
