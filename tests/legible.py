"""What a page's figures look like on a phone, computed from their SVG: no browser is needed."""

import re
from dataclasses import dataclass
from html import unescape

SCREEN_PX, MARGIN_PX, CARD_PX = 390, 20, 18 + 1
"""A phone's width; the margin of ``main``; padding and border of a card: see page.css."""

LETTER = 0.56
"""Width of a letter of a sans-serif, as a share of its size."""

_FIGURE = re.compile(r'<svg class="figure" viewBox="0 0 (\d+) (\d+)".*?</svg>', re.S)
_TEXT = re.compile(r'<text class="([^"]*)" x="([\d.-]+)" y="([\d.-]+)">(.*?)</text>')


@dataclass(frozen=True)
class Figure:
    """One figure: its title, its smallest label in pixels, and labels that are in the way."""

    title: str
    smallest_px: float
    ticks: list[str]
    outside: list[str]
    overlapping: list[tuple[str, str]]


def figures_of(page):
    """Every figure of a page, with the sizes of a phone."""
    style = page[page.index("<style>") : page.index("</style>")]
    assert "main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }" in style
    assert "padding: 18px 18px 12px" in style
    # Rules for wide screens stand in @media blocks, whose lines begin with it.
    narrow = "\n".join(line for line in style.splitlines() if not line.startswith("@media"))
    sizes = {
        name: float(size)
        for name, size in re.findall(r"\.figure (text|\.tick) \{[^}]*font-size: ([\d.]+)px", narrow)
    }
    room = SCREEN_PX - 2 * MARGIN_PX - 2 * CARD_PX
    return [_figure(found, sizes, room) for found in _FIGURE.finditer(page)]


def _figure(found, sizes, room):
    width = float(found[1])
    title = unescape(re.search(r"<title>(.*?)</title>", found[0])[1])
    boxes, smallest = [], float("inf")
    for kind, x, y, words in _TEXT.findall(found[0]):
        size = sizes[".tick" if "tick" in kind.split() else "text"]
        smallest = min(smallest, size * room / width)
        words = unescape(words)
        length = LETTER * size * len(words)
        classes = kind.split()
        left = float(x) - (length if "end" in classes else length / 2 if "middle" in classes else 0)
        boxes.append((words, left, left + length, float(y), size))
    overlapping = [
        (one[0], two[0])
        for n, one in enumerate(boxes)
        for two in boxes[n + 1 :]
        if abs(one[3] - two[3]) < 0.8 * min(one[4], two[4]) and one[1] < two[2] and two[1] < one[2]
    ]
    # A label may stick out by a letter's half: figures do not clip.
    outside = [b[0] for b in boxes if b[1] < -4 or b[2] > width + 4]
    ticks = [unescape(words) for kind, _, _, words in _TEXT.findall(found[0])
             if "tick" in kind.split()]  # fmt: skip
    return Figure(title, smallest, ticks, outside, overlapping)
