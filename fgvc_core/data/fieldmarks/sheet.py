"""The contact sheet: a plate of the twelve species, as a field guide would print it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgvc_core.data.fieldmarks.source import render
from fgvc_core.data.fieldmarks.species import SPECIES

PAPER, INK, FAINT = (250, 247, 240), (44, 40, 36), (124, 114, 102)
CELL, GAP, CAPTION, MARGIN = 112, 8, 54, 28


def contact_sheet(path: Path, seed: int, pictures: int = 3, across: int = 3) -> None:
    """Write the sheet as a PNG.

    Args:
        path: Where to.
        seed: Of the embedded set.
        pictures: Of each species.
        across: Species a row.
    """
    block = pictures * (CELL + GAP) + MARGIN
    down = -(-len(SPECIES) // across)
    height = MARGIN + down * (CELL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (MARGIN + across * block, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    name_font, said_font = ImageFont.load_default(17), ImageFont.load_default(13)
    for number, species in enumerate(SPECIES):
        left = MARGIN + number % across * block
        top = MARGIN + number // across * (CELL + CAPTION + MARGIN)
        for which in range(pictures):
            # Each subject has several pictures in a row: show different subjects.
            index = number + len(SPECIES) * 3 * which
            picture = Image.fromarray(np.asarray(render(seed, "train", index, CELL)[0]))
            sheet.paste(picture, (left + which * (CELL + GAP), top))
        pen.text((left, top + CELL + 6), species.name, fill=INK, font=name_font)
        pen.text((left, top + CELL + 30), species.said, fill=FAINT, font=said_font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
