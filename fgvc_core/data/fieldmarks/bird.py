"""A bird as colored polygons in its own coordinates: x forward, y down, origin in the body."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.fieldmarks.scene import Individual
from fgvc_core.data.fieldmarks.species import COLOURS, Colour, Species

PART_NAMES = ("crown", "eye", "bill", "throat", "wing", "tail tip", "breast", "back")

_HEAD = np.array([0.43, -0.3])
_RADIUS = 0.215

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """One filled polygon, float64 (M, 2)."""

    points: Points
    colour: Colour


def bird(species: Species, one: Individual, nod: float) -> tuple[list[Shape], Points]:
    """Build a bird's polygons, back to front, and the positions of its parts.

    Args:
        species: Decides the marks.
        one: Decides tint and build.
        nod: Rotation of the head relative to the body, in radians.

    Returns:
        The polygons, and float64 (P, 2), positions in the order of ``PART_NAMES``.
    """
    marks, deep = species.marks, 0.3 * one.stout
    back, dark = one.body, _shade(one.body, 0.62)
    shapes = [*_tail(one, marks, dark), *_legs(deep)]
    shapes.append(Shape(_ellipse((0, 0), 0.5, deep, -0.22), back))
    shapes.append(Shape(_ellipse((0.05, 0.42 * deep), 0.4, 0.6 * deep, -0.2), one.belly))
    shapes += _wing(marks, dark, deep)
    neck = np.array([[0.16, -0.26], [0.46, 0.08], [0.62, -0.2], [0.3, -0.42]])
    shapes.append(Shape(_turn(neck, nod * 0.4), back))
    shapes += [Shape(_turn(s.points, nod), s.colour) for s in _head(species, one)]
    places = np.array(
        [
            [0.4, -0.46],
            [0.5, -0.32],
            [0.72 if marks["bill"].startswith("short") else 0.82, -0.27],
            [0.5, -0.14],
            [-0.1, 0.0],
            [-0.98 * one.tail, 0.16],
            [0.24, 0.12],
            [-0.2, -0.2 * one.stout],
        ]
    )
    places[:4] = _turn(places[:4], nod)
    return shapes, places


def _tail(one: Individual, marks: dict[str, str], dark: Colour) -> list[Shape]:
    end = -1.06 * one.tail
    root, tip = np.array([-0.36, 0.03]), np.array([end, 0.18])
    across = np.array([0.04, 0.1])
    shapes = [Shape(np.array([root - across, tip - across, tip + across, root + across]), dark)]
    if marks["tail tip"] == "white":
        inner = tip + (root - tip) * 0.26
        shapes.append(
            Shape(
                np.array([inner - across, tip - across, tip + across, inner + across]),
                COLOURS["white"],
            )
        )
    return shapes


def _legs(deep: float) -> list[Shape]:
    legs = []
    for x in (-0.04, 0.1):
        top, foot = np.array([x, 0.75 * deep]), np.array([x + 0.03, deep + 0.2])
        wide = np.array([0.016, 0.0])
        legs.append(
            Shape(np.array([top - wide, top + wide, foot + wide, foot - wide]), (74, 60, 52))
        )
    return legs


def _wing(marks: dict[str, str], dark: Colour, deep: float) -> list[Shape]:
    top, low = -0.62 * deep, 0.5 * deep
    outline = np.array(
        [
            [0.26, top * 0.5],
            [0.1, top],
            [-0.2, top * 0.8],
            [-0.62, 0.02],
            [-0.2, low],
            [0.14, low * 0.8],
        ]
    )
    shapes = [Shape(_smooth(outline), dark)]
    if marks["wing bars"] != "none":
        for x in (0.06, -0.14):
            bar = np.array(
                [
                    [x, top * 0.66],
                    [x + 0.075, top * 0.62],
                    [x - 0.005, low * 0.74],
                    [x - 0.08, low * 0.7],
                ]
            )
            shapes.append(Shape(bar, COLOURS["white"]))
    return shapes


def _head(species: Species, one: Individual) -> list[Shape]:
    marks = species.marks
    shapes = _bill(marks)
    shapes.append(Shape(_ellipse(_HEAD, _RADIUS, _RADIUS, 0), one.body))
    if marks["throat"] != "plain":
        # From the base of the bill down the front of the neck.
        throat = np.array([[0.61, -0.22], [0.44, -0.2], [0.36, -0.06], [0.46, 0.04], [0.6, -0.06]])
        shapes.append(Shape(_smooth(throat), COLOURS[marks["throat"]]))
    if marks["crown"] != "plain":
        angles = np.linspace(np.radians(188), np.radians(352), 24)
        arc = _HEAD + 1.06 * _RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        brow = np.array([[0.6, -0.37], [0.42, -0.39], [0.24, -0.33]])
        shapes.append(Shape(np.concatenate([arc, brow]), COLOURS[marks["crown"]]))
    eye = np.array([0.5, -0.32])
    if marks["eye-ring"] != "none":
        shapes.append(Shape(_ellipse(eye, 0.095, 0.095, 0), COLOURS["white"]))
    shapes.append(Shape(_ellipse(eye, 0.047, 0.047, 0), (12, 10, 10)))
    shapes.append(
        Shape(_ellipse(eye + np.array([0.014, -0.016]), 0.014, 0.014, 0), (250, 250, 250))
    )
    return shapes


def _bill(marks: dict[str, str]) -> list[Shape]:
    if marks["bill"].startswith("short"):
        upper = np.array([[0.58, -0.37], [0.82, -0.25], [0.58, -0.25]])
        lower = np.array([[0.58, -0.26], [0.8, -0.245], [0.58, -0.18]])
        return [Shape(upper, (48, 44, 46)), Shape(lower, (76, 70, 70))]
    upper = np.array([[0.58, -0.34], [1.06, -0.235], [0.58, -0.26]])
    lower = np.array([[0.58, -0.27], [1.05, -0.23], [0.58, -0.21]])
    return [Shape(upper, (236, 128, 28)), Shape(lower, (204, 98, 20))]


def _ellipse(centre: object, rx: float, ry: float, angle: float) -> Points:
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rx * np.cos(turn), ry * np.sin(turn)
    points = np.stack(
        [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1
    )
    return points + np.asarray(centre, dtype=float)


def _smooth(points: Points) -> Points:
    """Chaikin's corner cutting, two iterations (Chaikin 1974)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        cut = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1)
        points = cut.reshape(-1, 2)
    return points


def _turn(points: Points, angle: float) -> Points:
    """Rotate about the neck."""
    pivot = np.array([0.3, -0.1])
    cos, sin = np.cos(angle), np.sin(angle)
    return (points - pivot) @ np.array([[cos, sin], [-sin, cos]]) + pivot


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(v * factor) for v in colour)
    return red, green, blue
