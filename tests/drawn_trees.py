"""Three small trees of pictures as people have them, drawn: disks, stripes, colored patches."""

import csv

import numpy as np
from PIL import Image


def disks(root, each=12, side=64):
    """Class folders without a split: one, two or three disks on a ground of any grey."""
    draw = np.random.default_rng(1)
    for count, name in ((1, "one"), (2, "two"), (3, "three")):
        for number in range(each):
            image = np.full((side, side, 3), draw.integers(0, 120), dtype=np.uint8)
            for at in range(count):
                x, y = side * (1 + 2 * at) // 6, draw.integers(side // 4, 3 * side // 4)
                yy, xx = np.mgrid[:side, :side]
                image[(yy - y) ** 2 + (xx - x) ** 2 < (side // 9) ** 2] = 230
            _save(root / name / f"{number}.png", image)
    return root


def stripes(root, each=(60, 30, 5), test=6, side=48):
    """Split folders, grey, very unequal classes: stripes at three angles."""
    draw = np.random.default_rng(2)
    for angle, name, count in zip((0, 45, 90), ("flat", "leaning", "upright"), each, strict=True):
        for split, many in (("train", count), ("test", test)):
            for number in range(many):
                yy, xx = np.mgrid[:side, :side]
                turned = np.deg2rad(angle + draw.normal(0, 4))
                wave = np.sin((xx * np.sin(turned) + yy * np.cos(turned)) / draw.uniform(2, 4))
                noise = draw.normal(0, 15, (side, side))
                grey = np.clip(128 + 90 * wave + noise, 0, 255).astype(np.uint8)
                _save(root / split / name / f"{number}.png", grey)
    return root


def patches(root, animals=24, side=40):
    """A CSV with subjects and hospitals beside a folder of pictures: four colors of a patch."""
    draw = np.random.default_rng(3)
    colors = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 200),
              "yellow": (210, 200, 50)}  # fmt: skip
    rows = []
    for animal in range(animals):
        name, color = list(colors.items())[animal % 4]
        for shot in range(3):
            image = draw.integers(60, 160, (side, side, 3)).astype(np.uint8)
            x, y = draw.integers(4, side - 16, 2)
            image[y : y + 12, x : x + 12] = np.clip(color + draw.normal(0, 20, 3), 0, 255)
            file = f"{animal}-{shot}.png"
            _save(root / "pictures" / file, image)
            rows.append([file, name, f"animal {animal}", ("Lyon", "Bern")[animal // 4 % 2]])
    with (root / "list.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["file", "species", "animal", "hospital"], *rows])
    return root


def _save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
