"""Names of lines beside the lines themselves, where a legend would send the eye away and back.

A name goes where no line runs through it, as near to its own line as there is room, and nearer to
it than to another.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fgvc_core.drawing import svg
from fgvc_core.drawing.axes import LETTER
from fgvc_core.drawing.svg import Point

TALL, SWATCH, GAP = 15.0, 16.0, 3.0
"""Height of a name, width of the dash in its line's color, and room around both, in view units."""

FARTHER = 0.2
"""How much a place further to the left counts against it, a unit: lines are told apart at their
ends."""


@dataclass(frozen=True)
class Named:
    """A line and its name.

    Attributes:
        name: What stands beside it.
        style: CSS class of its color.
        path: Its points from left to right; may be empty.
    """

    name: str
    style: str
    path: Sequence[Point]


@dataclass(frozen=True)
class Box:
    """A rectangle in view units; y grows downward."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether two boxes overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def beside(lines: Sequence[Named], room: Box) -> list[str]:
    """The names of lines as SVG elements.

    Args:
        lines: All lines of a figure, since a name must not lie on any.
        room: Where names may stand.

    Returns:
        Nothing where a name has no free place: the caller then needs :func:`stacked` or a legend.
    """
    drawn = [line for line in lines if line.path]
    parts: list[str] = []
    taken: list[Box] = []
    for line in sorted(drawn, key=lambda one: one.path[-1][1]):
        places = [box for box in _places(line, room) if _is_free(box, drawn, taken)]
        if not places:
            return []
        box = min(places, key=lambda place: _cost(place, line, drawn, room))
        taken.append(box)
        parts += _drawn(line, box)
    return parts


def stacked(lines: Sequence[Named], room: Box) -> list[str]:
    """The names of lines one below the other in the lower right corner, whatever they cover."""
    drawn = [line for line in lines if line.path]
    wide = max((_wide(line) for line in drawn), default=0.0)
    tops = [room.bottom - TALL * (len(drawn) - n) for n in range(len(drawn))]
    places = [Box(room.right - wide, top, room.right, top + TALL) for top in tops]
    return [part for line, box in zip(drawn, places, strict=True) for part in _drawn(line, box)]


def _drawn(line: Named, box: Box) -> list[str]:
    middle = box.top + TALL / 2
    return [
        svg.line(box.left, middle, box.left + SWATCH - 5, middle, f"curve {line.style}"),
        svg.text(box.left + SWATCH, middle + 4, line.name, "label"),
    ]


def _wide(line: Named) -> float:
    return SWATCH + LETTER * len(line.name)


def _places(line: Named, room: Box) -> Iterator[Box]:
    wide = _wide(line)
    rows = int((room.bottom - room.top - TALL) // 5) + 1
    columns = int(max(room.right - room.left - wide, 0) // 12) + 1
    if wide > room.right - room.left:
        return
    for column in range(columns):
        right = room.right - 12 * column
        for row in range(rows):
            top = room.top + 5 * row
            yield Box(right - wide, top, right, top + TALL)


def _is_free(box: Box, lines: Sequence[Named], taken: Sequence[Box]) -> bool:
    if any(box.meets(other) for other in taken):
        return False
    for line in lines:
        crossed = _between(line.path, box.left - GAP, box.right + GAP)
        if crossed and min(crossed) < box.bottom + GAP and max(crossed) > box.top - GAP:
            return False
    return True


def _cost(box: Box, line: Named, lines: Sequence[Named], room: Box) -> float:
    own = _distance(box, line.path)
    others = [_distance(box, other.path) for other in lines if other is not line]
    # Beside another line a name would be taken for that line's.
    taken_for_another = max(own - min(others, default=own), 0.0)
    return own + 2 * taken_for_another + FARTHER * (room.right - box.right)


def _distance(box: Box, path: Sequence[Point]) -> float:
    """Vertical distance of a box from a line; far away where the line is not above or below it."""
    crossed = _between(path, box.left, box.right)
    if not crossed:
        return min(abs(y - box.top) + min(abs(x - box.left), abs(x - box.right)) for x, y in path)
    return min(max(box.top - y, y - box.bottom, 0.0) for y in crossed)


def _between(path: Sequence[Point], left: float, right: float) -> list[float]:
    """Heights of a line from ``left`` to ``right``, its corners and where it enters and leaves."""
    found = [y for x, y in path if left <= x <= right]
    for at in (left, right):
        for (x1, y1), (x2, y2) in itertools.pairwise(path):
            if x1 < at < x2:
                found.append(y1 + (y2 - y1) * (at - x1) / (x2 - x1))
    return found
