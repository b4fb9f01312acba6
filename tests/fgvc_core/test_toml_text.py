"""TOML of any origin is read in bounded time, or refused."""

import re
import time
from pathlib import Path

import pytest

from fgvc_core.configuration import MAX_CHARACTERS, read_toml, read_toml_file
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import load_recipe, parse_recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a." * 40_000 + "a = 1", "dots"),
        ("'a' . " * 40_000 + "a = 1", "dots"),
        ("[" + "a." * 40_000 + "a]", "dots"),
        ("x = {" + "a." * 40_000 + "a = 1}", "dots"),
        ("x = " + "[" * 50_000, "levels deep"),
        ("x = " + "{a=" * 50_000, "levels deep"),
        ("x = " + "9" * 80_000, "longer than 128"),
        ("x = 0x" + "f" * 80_000, "longer than 128"),
        ("a" * 80_000 + " = 1", "longer than 128"),
        ("# " + "a" * MAX_CHARACTERS, "characters"),
        ('"""\n' + 'x = 1\n\\"""\n' * 20_000, "not TOML"),
        ('"' + '\\"' * 100_000, "not TOML"),
        ("s = 'a\n" + "a." * 40_000 + "a = 1", "not TOML"),
    ],
    ids=[
        "a dotted key", "a dotted key of quoted names", "a table's name", "an inline table's key",
        "nested arrays", "nested tables", "digits", "hexadecimal digits", "a word", "a comment",
        "strings without an end", "a string without an end", "an open string before a long key",
    ],
)  # fmt: skip
def test_text_that_would_take_minutes_is_refused_in_a_second(text, said):
    started = time.process_time()
    with pytest.raises(ConfigurationError, match=said):
        read_toml(text, "recipe")
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    "text",
    [
        's = """a.b.c.d.e.f.g.h.i.j.k [[[[[[[[[[[[[[[[[[["""',
        "s = 'a.b.c.d.e.f.g.h.i.j.k [[[[[[[[[[[[[[[[[[['",
        r's = "a \" b.c.d.e.f.g.h.i.j.k [[[[[[[[[[[[[[[[[["',
        's = """a\\"""b""" # a.b.c.d.e.f.g.h.i.j.k',
        's = """a"""""\nt = ' + "'''b'''''",
        "l = [\n" + "  1.5, 2.5,\n" * 1000 + "]",
        "d = 1979-05-27T00:32:00.999999-07:00",
    ],
)
def test_what_stands_in_a_string_or_a_comment_counts_for_nothing(text):
    assert read_toml(text, "recipe")


def test_recipes_in_messages_and_files_are_read_so(tmp_path):
    text = "[model]\n" + "a." * 40_000 + "a = 1"
    (tmp_path / "recipe.toml").write_text(text)
    for read in (
        lambda: parse_recipe(text),
        lambda: load_recipe(tmp_path / "recipe.toml"),
    ):
        with pytest.raises(ConfigurationError, match="dots"):
            read()


def test_a_recipes_file_is_not_read_beyond_what_can_be_parsed(tmp_path):
    (tmp_path / "recipe.toml").write_text("#" * 3 * MAX_CHARACTERS)
    with pytest.raises(ConfigurationError, match="2,000,001 characters"):
        load_recipe(tmp_path / "recipe.toml")


def test_a_file_that_people_edit_is_read_within_the_same_limits(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('name = "lyon"\n')
    assert read_toml_file(path, "The settings", remedy="-") == {"name": "lyon"}
    for text, said in (
        ("a." * 40_000 + "a = 1", "dots"),
        ("#" * 3 * MAX_CHARACTERS, "2,000,001 characters"),
        ("name =", "is not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=said) as refused:
            read_toml_file(path, "The settings", remedy="-")
        assert str(path) in refused.value.what
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"The settings .* cannot be read") as refused:
        read_toml_file(path, "The settings", remedy="Name another.", why="Nobody knows.")
    assert (refused.value.remedy, refused.value.why) == ("Name another.", "Nobody knows.")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_toml_file(tmp_path, "The settings", remedy="-")


def test_no_toml_is_read_past_these_limits():
    root = Path(__file__).parents[2]
    for package in ("client", "server", "simulations", "fgvc_core"):
        for path in (root / package).rglob("*.py"):
            imported = re.search(r"^\s*(import|from) tomllib", path.read_text(), re.MULTILINE)
            assert not imported or path.name == "configuration.py", path
