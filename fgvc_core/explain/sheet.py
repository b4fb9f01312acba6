"""Writes explanations as one PNG, or as one self-contained HTML page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fgvc_core.errors import ConfigurationError
from fgvc_core.explain.explaining import Explained
from fgvc_core.inference.pages import render_page

_SIDE, _GAP, _LINE = 176, 8, 15
_INK, _PAPER = (32, 32, 32), (255, 255, 255)

# Dark blue, magenta, orange, pale yellow: even steps of brightness, also in grayscale prints.
_STOPS = np.array([[13, 8, 135], [156, 23, 158], [237, 121, 83], [240, 249, 33]], dtype=np.float64)


def write_sheet(
    found: Sequence[Explained], path: Path, note: str, title: str = "", told: str = ""
) -> None:
    """Write explanations in the format that the path's suffix names.

    Args:
        found: At least one explanation.
        path: ``.png`` or ``.html``.
        note: One line on how the maps were made.
        title: Name of the model.
        told: One sentence on the calibration of the shares.

    Raises:
        ConfigurationError: for another suffix, or a path that cannot be written.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise ConfigurationError(
            f"--out '{path}' ends in neither .png nor .html.",
            remedy=f"For instance: --out {path.with_suffix('.html')}",
        )
    try:
        if path.suffix.lower() == ".png":
            _sheet(found, f"{told} {note}".strip()).save(path)
        else:
            path.write_text(_page(found, note, title, told), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"--out '{path}' cannot be written: {error.strerror}.",
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from None


def overlay(view_HWC: NDArray[np.uint8], map_HW: NDArray[np.float32]) -> Image.Image:
    """A map over its picture: RGB (176, 176), gray where the map is zero.

    Args:
        view_HWC: uint8 (S, S, 3).
        map_HW: float32 (S, S), 0 to 1.
    """
    picture = Image.fromarray(view_HWC).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    grey_HW1 = np.asarray(picture.convert("L"), dtype=np.float64)[:, :, None]
    heat = Image.fromarray(map_HW.astype(np.float32)).resize(
        (_SIDE, _SIDE), Image.Resampling.BILINEAR
    )
    heat_HW = np.clip(np.asarray(heat, dtype=np.float64), 0, 1)
    at = np.linspace(0, 1, len(_STOPS))
    colour_HWC = np.stack([np.interp(heat_HW, at, _STOPS[:, c]) for c in range(3)], axis=2)
    share_HW1 = (0.15 + 0.5 * heat_HW)[:, :, None]
    mixed_HWC = grey_HW1 * (1 - share_HW1) + colour_HWC * share_HW1
    return Image.fromarray(mixed_HWC.round().clip(0, 255).astype(np.uint8))


def _picture(view_HWC: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(view_HWC).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _panels(one: Explained) -> list[tuple[str, Image.Image]]:
    told = f"true: {one.truth}" if one.truth else "as the model sees it"
    panels = [(told, _picture(one.view_HWC))]
    return panels + [(title, overlay(one.view_HWC, m_HW)) for title, m_HW in one.maps.items()]


def _heading(one: Explained) -> str:
    return f"{one.name}: {_answer(one)}, {_also(one)}"


def _answer(one: Explained) -> str:
    verdict = one.verdict
    if not verdict.sure:
        return verdict.answer
    return f"{verdict.answer} ({_percent(verdict.confidence)})"


def _also(one: Explained) -> str:
    """The two most probable classes that are not the answer yet, and why it is none of them."""
    verdict = one.verdict
    ranked = verdict.top[verdict.answer == verdict.top[0][0] : 2]
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in ranked)
    return f"{shares}; {verdict.reason}" if verdict.reason else f"then {shares}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _sheet(found: Sequence[Explained], note: str) -> Image.Image:
    font = ImageFont.load_default(12)
    most = max(len(_panels(one)) for one in found)
    row = _LINE * 4 + _SIDE + 2 * _GAP
    width = most * (_SIDE + _GAP) + _GAP
    lead = _wrap(note, font, width - 2 * _GAP)
    head = _LINE * len(lead) + 2 * _GAP
    sheet = Image.new("RGB", (width, row * len(found) + head), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(lead):
        pen.text((_GAP, _GAP + line * _LINE), text, _INK, font)
    for number, one in enumerate(found):
        top = number * row + head
        pen.text((_GAP, top), _heading(one), (164, 0, 0) if one.wrong else _INK, font)
        for at, (title, panel) in enumerate(_panels(one)):
            left = _GAP + at * (_SIDE + _GAP)
            sheet.paste(panel, (left, top + _LINE + 4))
            for line, text in enumerate(_wrap(title, font, _SIDE)[:3]):
                pen.text((left, top + _LINE + _SIDE + 6 + line * _LINE), text, _INK, font)
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _page(found: Sequence[Explained], note: str, title: str, told: str) -> str:
    pictures = [
        {
            "answer": _answer(one),
            "also": f"{one.name}: {_also(one)}",
            "wrong": one.wrong,
            "panels": [(named, _data_url(panel)) for named, panel in _panels(one)],
        }
        for one in found
    ]
    values = {"title": title, "told": told, "note": note, "pictures": pictures}
    return render_page("explained.html.j2", values, "fgvc_core.explain")


def _data_url(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
