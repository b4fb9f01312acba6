"""Elements of figures: well-formed, escaped, and in their places."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.drawing import svg
from fgvc_core.words import visible

NUMBERS = st.floats(-1e6, 1e6)


@given(st.text(st.characters(exclude_characters="\ufffe\uffff")))
def test_no_text_leaves_its_place_and_nothing_hidden_stays_so(words):
    parts = [svg.text(0, 0, words, "name"), svg.circle(0, 0, 1, "dot", words)]
    parts.append(svg.rectangle(0, 0, 1, 1, "bar", words))
    root = ElementTree.fromstring(svg.figure(words, 10, 10, parts))
    tags = [element.tag for element in root.iter()]
    told = 1 if words else 0
    assert tags == ["svg", "title", "text", "circle", *["title"] * told, "rect", *["title"] * told]
    shown = "".join(root.itertext())
    assert visible(words) in shown
    assert visible(shown) == shown


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_scale_keeps_to_its_ends_and_to_their_order(low, high, value):
    place = svg.scale(low, high, 10, 110)
    assert 10 <= place(value) <= 110
    if high > low:
        assert (place(low), place(high)) == (10, 110)


def test_one_value_lies_in_the_middle():
    assert svg.scale(3, 3, 0, 10)(3) == 5


@pytest.mark.parametrize(
    ("name", "length", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("", 3, "")]
)
def test_a_long_name_is_cut_with_an_ellipsis(name, length, shown):
    assert svg.short(name, length) == shown
