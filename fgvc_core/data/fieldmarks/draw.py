"""Drawing of one picture from a species, an individual, a site's style and a scene."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from fgvc_core.data.fieldmarks.bird import PART_NAMES, Points, bird
from fgvc_core.data.fieldmarks.scene import Individual, Scene, SiteStyle
from fgvc_core.data.fieldmarks.species import COLOURS, Colour, Species

VERSION = 1
"""Must change whenever the same arguments draw a different picture."""

COARSE = 192
"""Smallest canvas, in pixels: a small picture is drawn on a larger canvas and reduced."""


class Canvas:
    """A square picture to draw on in unit coordinates.

    Args:
        background: Modified in place.
    """

    def __init__(self, background: Image.Image) -> None:
        self.image = background
        self.side = background.width
        self.pen = ImageDraw.Draw(background)

    def fill(self, points: Points, colour: Colour) -> None:
        """Fill a polygon, float64 (M, 2) in 0..1."""
        self.pen.polygon([(x, y) for x, y in (points * self.side).tolist()], fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draw a line; ``width`` in 0..1."""
        self.pen.line(
            [(x, y) for x, y in (points * self.side).tolist()],
            fill=colour,
            width=max(round(width * self.side), 1),
            joint="curve",
        )


def draw(
    species: Species, one: Individual, style: SiteStyle, scene: Scene, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Draw one picture.

    Returns:
        uint8 (size, size, 3); float32 (P, 3), each part's x, y and visibility (in the frame
        and not occluded); float32 (4,), the bird's box as x, y, width, height.
    """
    generator = np.random.default_rng(scene.seed)
    factor = max(2, -(-COARSE // size))
    canvas = Canvas(_background(style, generator, size * factor))
    _clutter(canvas, style, generator)
    shapes, places = bird(species, one, scene.nod)
    _perch(canvas, scene, generator)
    outlines = [_place(shape.points, scene) for shape in shapes]
    for shape, outline in zip(shapes, outlines, strict=True):
        canvas.fill(outline, shape.colour)
    covers = [_occluder(canvas, style, generator, scene) for _ in range(scene.occluders)]
    picture = _finish(canvas.image, style, scene, generator, size)
    every = np.concatenate(outlines)
    low, high = np.clip(every.min(axis=0), 0, 1), np.clip(every.max(axis=0), 0, 1)
    box = np.concatenate([low, high - low]).astype(np.float32)
    return picture, _parts(_place(places, scene), covers), box


def _place(points: Points, scene: Scene) -> Points:
    """Convert from the bird's coordinates to the picture's."""
    cos, sin = np.cos(scene.tilt), np.sin(scene.tilt)
    turned = points @ np.array([[cos, sin], [-sin, cos]]) * scene.length
    if scene.faces_left:
        turned = turned * [-1, 1]
    return turned + np.array(scene.centre)


def _background(style: SiteStyle, generator: np.random.Generator, side: int) -> Image.Image:
    """Soft patches: a few random colors, smoothly enlarged."""
    palette = np.array(style.backgrounds, dtype=float)
    cells = int(generator.integers(3, 7))
    pick = generator.integers(len(palette), size=(cells, cells))
    field = palette[pick] + generator.normal(0, 12, (cells, cells, 3))
    small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def _clutter(canvas: Canvas, style: SiteStyle, generator: np.random.Generator) -> None:
    """Discs of light, twigs, leaves and berries behind the bird.

    Berries have the colors of the marks, so that a picture's colors alone do not give the class.
    """
    marks = list(COLOURS.values())
    for _ in range(generator.integers(2, 7)):
        centre, radius = generator.random(2), generator.uniform(0.02, 0.09)
        canvas.fill(_disc(centre, radius), _mixed(style, generator, 34))
    for _ in range(generator.integers(0, 4)):
        ends = generator.uniform(-0.1, 1.1, (2, 2))
        canvas.line(ends, _mixed(style, generator, -38), generator.uniform(0.006, 0.02))
    for _ in range(generator.integers(2, 8)):
        canvas.fill(
            _leaf(generator.random(2), generator.uniform(0.06, 0.2), generator),
            _mixed(style, generator, 0),
        )
    for _ in range(generator.integers(1, 7)):
        berry = _disc(generator.random(2), generator.uniform(0.012, 0.045))
        canvas.fill(berry, marks[generator.integers(len(marks))])


def _perch(canvas: Canvas, scene: Scene, generator: np.random.Generator) -> None:
    slope = generator.normal(0, 0.08)
    foot = _place(np.array([[0.06, 0.5]]), scene)[0]
    ends = np.array([[-0.1, foot[1] - slope], [foot[0], foot[1]], [1.1, foot[1] + slope]])
    shade = generator.uniform(0.75, 1.15)
    canvas.line(ends, (int(98 * shade), int(78 * shade), int(60 * shade)), 0.034)


def _occluder(
    canvas: Canvas, style: SiteStyle, generator: np.random.Generator, scene: Scene
) -> tuple[Points, float]:
    """Draw a leaf or a twig in front of the bird.

    Returns:
        Its outline or its line, and half the line's width (0 for an outline).
    """
    near = np.array(scene.centre) + generator.uniform(-0.42, 0.42, 2)
    if generator.random() < 0.6:
        leaf = _leaf(near, generator.uniform(0.07, 0.15), generator)
        canvas.fill(leaf, _mixed(style, generator, -14))
        return leaf, 0.0
    angle, width = generator.uniform(0, np.pi), generator.uniform(0.008, 0.018)
    reach = np.array([np.cos(angle), np.sin(angle)])
    twig = np.stack([near - reach, near + reach])
    canvas.line(twig, _mixed(style, generator, -46), width)
    return twig, width / 2


def _finish(
    image: Image.Image, style: SiteStyle, scene: Scene, generator: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    """Apply the effects of lens, sensor and light."""
    reduced = image.resize((size, size), Image.Resampling.BOX)
    if style.blur:
        reduced = reduced.filter(ImageFilter.GaussianBlur(style.blur * size))
    values = np.asarray(reduced, dtype=np.float32) * (np.array(style.tint) * scene.light)
    values += generator.normal(0, style.noise, (size, size, 3))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _parts(places: Points, covers: list[tuple[Points, float]]) -> NDArray[np.float32]:
    seen: NDArray[np.bool_] = np.all((places > 0.01) & (places < 0.99), axis=1)
    for outline, half in covers:
        for part in range(len(PART_NAMES)):
            if half:
                seen[part] &= _from_line(places[part], outline) > half
            else:
                seen[part] &= not _inside(places[part], outline)
    return np.concatenate([places, seen[:, None]], axis=1).astype(np.float32)


def _from_line(point: Points, ends: Points) -> float:
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    offset = point - ends[0]
    return float(abs(along[0] * offset[1] - along[1] * offset[0]))


def _inside(point: Points, outline: Points) -> bool:
    """Whether a ray from the point crosses the outline an odd number of times."""
    a, b = outline, np.roll(outline, -1, axis=0)
    spans = (a[:, 1] > point[1]) != (b[:, 1] > point[1])
    height = np.where(b[:, 1] == a[:, 1], 1.0, b[:, 1] - a[:, 1])
    crossing = a[:, 0] + (point[1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / height
    return bool((spans & (point[0] < crossing)).sum() % 2)


def _disc(centre: Points, radius: float) -> Points:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _leaf(centre: Points, length: float, generator: np.random.Generator) -> Points:
    angle, slim = generator.uniform(0, 2 * np.pi), generator.uniform(0.2, 0.42)
    along = np.linspace(-1, 1, 12)
    edge = slim * (1 - along**2)
    points = np.concatenate([np.stack([along, edge], 1), np.stack([along[::-1], -edge[::-1]], 1)])
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) * length + centre


def _mixed(style: SiteStyle, generator: np.random.Generator, lift: float) -> Colour:
    base = np.array(style.backgrounds[generator.integers(len(style.backgrounds))], dtype=float)
    red, green, blue = (int(v) for v in np.clip(base + lift + generator.normal(0, 16, 3), 0, 255))
    return red, green, blue
