"""Figure of a partition: an SVG bubble chart of sites by classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fgvc_core.drawing.svg import short
from fgvc_core.words import escaped

_MARGIN = 24.0
_BAR = 150.0
_LETTER = 6.4
_NAMED_CLASSES = 80
_STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #3c4650; }
  .head { font-size: 17px; font-weight: 600; fill: #16202a; }
  .quiet { fill: #75818d; }
  .small { font-size: 11px; }
  .line { stroke: #8a96a3; stroke-opacity: .22; }
  .bubble { fill: #0f8b8d; fill-opacity: .82; }
  .bar { fill: #e08e45; }
  .family { fill: #75818d; fill-opacity: .09; }
  @media (prefers-color-scheme: dark) {
    text { fill: #c6d0da; }
    .head { fill: #f2f5f8; }
    .quiet { fill: #8f9ba7; }
    .bubble { fill: #4cc3c0; }
    .bar { fill: #eda55d; }
  }
"""


def draw_partition(
    counts: Mapping[str, NDArray[np.int64]],
    class_names: Sequence[str],
    title: str,
    families: Sequence[tuple[str, int]] = (),
) -> str:
    """Draw an SVG of a partition, readable on a light and on a dark page.

    The area of a bubble is proportional to its count, which a tooltip shows; a bar on the
    right shows each site's total.

    Args:
        counts: Site -> int64 (K,), examples per class.
        class_names: K names.
        title: The heading.
        families: (name, number of classes) of adjacent groups, if any: every second one is on
            a band, with the names below.

    Returns:
        A complete SVG document without external references.
    """
    table_SK = np.array(list(counts.values()), dtype=np.int64)
    sites, classes = table_SK.shape
    step = float(np.clip(900.0 / classes, 9.0, 34.0))
    row = max(step, 17.0)
    names = classes <= _NAMED_CLASSES
    left = _MARGIN + _LETTER * min(max(map(len, counts)), 28) + 14
    top = 92.0 + (0.72 * _LETTER * min(max(map(len, class_names)), 26) if names else 14)
    width = max(left + classes * step + 28 + _BAR + 60 + _MARGIN, 420.0)
    height = top + sites * row + (86 if families else 62)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escaped(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="head" x="{_MARGIN}" y="38">{escaped(title)}</text>',
        f'<text class="quiet" x="{_MARGIN}" y="59">{sites} sites, {classes} classes, '
        f"{int(table_SK.sum()):,} training examples</text>",
        *_bands(families, left, top, step, sites * row),
        *_class_heads(class_names, left, top, step, names),
        *_rows(counts, class_names, table_SK, (left, top, step, row)),
        *_legend(int(table_SK.max(initial=1)), left, height - 28, step),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bands(
    families: Sequence[tuple[str, int]], left: float, top: float, step: float, tall: float
) -> list[str]:
    marks, x = [], left
    for number, (name, width) in enumerate(families):
        wide = width * step
        if number % 2 == 0:
            marks.append(
                f'<rect class="family" x="{x:.1f}" y="{top - 4:.1f}" width="{wide:.1f}" '
                f'height="{tall + 26:.1f}" rx="4"><title>{escaped(name)}</title></rect>'
            )
        letters = int(wide / (0.95 * _LETTER))
        if letters >= 3:
            marks.append(
                f'<text class="small quiet" x="{x + wide / 2:.1f}" y="{top + tall + 15:.1f}" '
                f'text-anchor="middle">{escaped(short(name, letters))}</text>'
            )
        x += wide
    return marks


def _class_heads(
    class_names: Sequence[str], left: float, top: float, step: float, names: bool
) -> list[str]:
    heads = []
    for k, name in enumerate(class_names):
        x, y = left + (k + 0.5) * step, top - 10
        if names:
            heads.append(
                f'<text class="small quiet" transform="translate({x + 3:.1f} {y:.1f}) '
                f'rotate(-45)">{escaped(short(name, 26))}</text>'
            )
        elif k == 0 or (k + 1) % 10 == 0:
            heads.append(
                f'<text class="small quiet" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">'
                f"{k + 1}</text>"
            )
    return heads


def _rows(
    counts: Mapping[str, NDArray[np.int64]],
    class_names: Sequence[str],
    table_SK: NDArray[np.int64],
    layout: tuple[float, float, float, float],
) -> list[str]:
    left, top, step, row = layout
    most, most_total = max(int(table_SK.max(initial=1)), 1), max(int(table_SK.sum(1).max()), 1)
    right = left + len(class_names) * step
    lines = []
    for s, (site, counts_K) in enumerate(counts.items()):
        y = top + (s + 0.5) * row
        total = int(counts_K.sum())
        lines.append(
            f'<line class="line" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escaped(short(site, 28))}</text>"
        )
        for k in np.flatnonzero(counts_K).tolist():
            count = int(counts_K[k])
            lines.append(
                f'<circle class="bubble" cx="{left + (k + 0.5) * step:.1f}" cy="{y:.1f}" '
                f'r="{_radius(count, most, step):.2f}"><title>{escaped(site)}, '
                f"{escaped(class_names[k])}: {count}</title></circle>"
            )
        length = _BAR * total / most_total
        lines.append(
            f'<rect class="bar" x="{right + 28:.1f}" y="{y - 4:.1f}" width="{length:.1f}" '
            f'height="8" rx="4"/><text class="small" x="{right + 36 + length:.1f}" '
            f'y="{y + 4:.1f}">{total:,}</text>'
        )
    return lines


def _legend(most: int, left: float, y: float, step: float) -> list[str]:
    marks = []
    x = left + step / 2
    for count in sorted({max(most // 16, 1), max(most // 4, 1), most}):
        marks.append(
            f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{_radius(count, most, step):.2f}"/>'
            f'<text class="small quiet" x="{x + step / 2 + 6:.1f}" y="{y + 4:.1f}">{count:,}</text>'
        )
        x += step + 54
    marks.append(
        f'<text class="small quiet" x="{x:.1f}" y="{y + 4:.1f}">examples of a class</text>'
    )
    return marks


def _radius(count: int, most: int, step: float) -> float:
    # The minimum keeps a single example visible beside hundreds.
    return max(0.46 * step * float(np.sqrt(count / most)), 1.4)
