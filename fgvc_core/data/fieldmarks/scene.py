"""What varies between pictures independently of the species: individual, site style and scene.

An individual keeps its tint and build in all its pictures; a site has its own palette, light
and lens; pose, position, clutter and occluders are drawn anew for each picture.
"""

from dataclasses import dataclass

import numpy as np

from fgvc_core.data.fieldmarks.species import Colour


@dataclass(frozen=True)
class SiteStyle:
    """Look of the pictures of one site.

    Attributes:
        backgrounds: Colors that backgrounds are mixed from.
        tint: Factors for red, green and blue.
        blur: Radius of the lens's blur as a share of the picture's side.
        noise: Standard deviation of the sensor's noise, on a scale of 255.
    """

    backgrounds: tuple[Colour, ...]
    tint: tuple[float, float, float]
    blur: float
    noise: float


SITES: dict[str, SiteStyle] = {
    "marsh": SiteStyle(
        ((118, 140, 98), (86, 112, 92), (160, 168, 120), (70, 92, 84)), (0.96, 1.02, 0.98), 0.0, 3
    ),
    "dunes": SiteStyle(
        ((214, 192, 150), (196, 206, 214), (176, 152, 112), (226, 214, 186)), (1.06, 1, 0.9), 0, 2
    ),
    "pinewood": SiteStyle(
        ((52, 76, 58), (84, 100, 70), (38, 52, 46), (110, 118, 92)), (0.94, 1.0, 0.98), 0.004, 5
    ),
    "orchard": SiteStyle(
        ((136, 172, 92), (190, 206, 140), (104, 142, 74), (214, 206, 170)), (1.04, 1, 0.92), 0.0, 3
    ),
    "harbour": SiteStyle(
        ((146, 164, 182), (110, 128, 146), (182, 190, 196), (92, 100, 116)),
        (0.92, 0.99, 1.1),
        0.006,
        4,
    ),
}
SITE_NAMES = tuple(SITES)

CAMERAS = ("trap-a", "trap-b", "handheld")

_BODIES: tuple[Colour, ...] = (
    (158, 140, 116),
    (136, 140, 146),
    (142, 148, 106),
    (178, 152, 112),
    (116, 128, 148),
    (162, 132, 126),
)


@dataclass(frozen=True)
class Individual:
    """Tint and build of one bird.

    Attributes:
        body: Color of back and head.
        belly: Color of the underside.
        stout: Factor on the body's depth, around 1.
        tail: Factor on the tail's length, around 1.
    """

    body: Colour
    belly: Colour
    stout: float
    tail: float


@dataclass(frozen=True)
class Scene:
    """What is drawn anew for one picture, in fractions of its side or in radians.

    Attributes:
        centre: Center of the body.
        length: One unit of the bird's own coordinates.
        tilt: Rotation of the whole bird.
        faces_left: Whether the bird is mirrored.
        nod: Rotation of the head relative to the body.
        light: Brightness factor of the picture.
        seed: Seed of clutter, occluders and noise.
        occluders: Number of leaves or twigs in front.
    """

    centre: tuple[float, float]
    length: float
    tilt: float
    faces_left: bool
    nod: float
    light: float
    seed: int
    occluders: int


def draw_individual(generator: np.random.Generator) -> Individual:
    """Draw an individual at random."""
    base = np.array(_BODIES[generator.integers(len(_BODIES))], dtype=float)
    body = np.clip(base * generator.uniform(0.85, 1.15) + generator.normal(0, 7, 3), 60, 215)
    pale = body + (np.array([236, 230, 218]) - body) * generator.uniform(0.35, 0.8)
    return Individual(
        _colour(body),
        _colour(pale),
        float(generator.uniform(0.88, 1.14)),
        float(generator.uniform(0.85, 1.15)),
    )


def draw_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene at random."""
    return Scene(
        centre=(float(generator.uniform(0.37, 0.63)), float(generator.uniform(0.43, 0.64))),
        length=float(generator.uniform(0.37, 0.5)),
        tilt=float(generator.normal(0, 0.2)),
        faces_left=bool(generator.random() < 0.5),
        nod=float(generator.normal(0, 0.14)),
        light=float(generator.uniform(0.72, 1.18)),
        seed=int(generator.integers(2**31)),
        occluders=int(generator.choice(3, p=[0.55, 0.33, 0.12])),
    )


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue
