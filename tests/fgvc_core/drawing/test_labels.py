import re
from html import unescape

import pytest

from fgvc_core.drawing.labels import TALL, Box, Named, beside, stacked

ROOM = Box(50, 14, 328, 180)
RISING = [(50 + 6 * n, 170 - 3 * n) for n in range(46)]
LOWER = [(x, y + 12) for x, y in RISING]
TEXT = re.compile(r'<text class="label" x="([\d.]+)" y="([\d.]+)">([^<]+)</text>')


def places(parts):
    """Name -> box of its text, generously."""
    found = {}
    for x, y, name in TEXT.findall("".join(parts)):
        top = float(y) - 4 - TALL / 2
        found[unescape(name)] = Box(float(x), top, float(x) + 6.3 * len(unescape(name)), top + TALL)
    return found


def test_a_name_lies_on_no_line_and_on_no_other_name():
    lines = [Named("held-out test", "first", RISING), Named("sites'", "second", LOWER)]
    found = places(beside(lines, ROOM))
    one, two = found["held-out test"], found["sites'"]
    assert not one.meets(two)
    for box in (one, two):
        assert ROOM.left <= box.left
        assert box.right <= ROOM.right + 1
        for x, y in (*RISING, *LOWER):
            assert not (box.left <= x <= box.right and box.top <= y <= box.bottom)


def test_a_name_is_nearer_to_its_own_line():
    far = [(x, y + 70) for x, y in RISING]
    found = places(beside([Named("up", "first", RISING), Named("down", "second", far)], ROOM))
    assert found["up"].top < found["down"].top


def test_a_line_without_a_point_has_no_name():
    found = places(beside([Named("up", "first", RISING), Named("none", "second", [])], ROOM))
    assert list(found) == ["up"]


@pytest.mark.parametrize("name", ["x" * 60, "up"], ids=["too long", "no room"])
def test_a_name_without_room_needs_another_place(name):
    lines = [Named(name, "first", RISING)]
    small = Box(50, 14, 328, 20) if name == "up" else ROOM
    assert beside(lines, small) == []
    assert name in "".join(stacked(lines, small))


def test_one_point_is_a_line_too():
    found = places(
        beside([Named("a", "first", [(60, 60)]), Named("b", "second", [(60, 90)])], ROOM)
    )
    assert found["a"].top < found["b"].top
