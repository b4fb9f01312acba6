"""Elements of inline SVG figures, as text.

Colors come from the page's style sheet, by class, so that a figure follows the page's theme.
Coordinates are in a view box of fixed width, which the page scales. Text is escaped here, and shows
what is hidden in it by its code.
"""

from collections.abc import Callable, Iterable

from fgvc_core.words import escaped

Point = tuple[float, float]


def figure(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """A whole figure.

    Args:
        title: What it shows, for those who cannot see it.
        width: Of the view box.
        height: Of the view box.
        parts: Its elements, in the order in which they are painted.
    """
    told = escaped(title)
    return (
        f'<svg class="figure" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{told}"><title>{told}</title>{"".join(parts)}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line; ``style`` holds its CSS classes."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, style: str) -> str:
    """A line of text; ``style`` holds its CSS classes."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escaped(words)}</text>'


def polyline(points: Iterable[Point], style: str) -> str:
    """A line through points."""
    return f'<polyline class="{style}" points="{_joined(points)}"/>'


def polygon(points: Iterable[Point], style: str) -> str:
    """A filled shape with these corners."""
    return f'<polygon class="{style}" points="{_joined(points)}"/>'


def circle(x: float, y: float, radius: float, style: str, told: str = "") -> str:
    """A disc; ``told`` is shown when it is pointed at."""
    head = f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.3g}"'
    return f"{head}{_told(told, 'circle')}"


def rectangle(
    x: float, y: float, width: float, height: float, style: str, told: str = "", opacity: float = 1
) -> str:
    """A rectangle; ``told`` is shown when it is pointed at."""
    faint = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    head = (
        f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"{faint}'
    )
    return f"{head}{_told(told, 'rect')}"


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values of ``low`` to ``high`` to places from ``start`` to ``end``.

    Values beyond are drawn at the edge; where all values are one, it lies in the middle.
    """
    if high <= low:
        return lambda value: (start + end) / 2
    return lambda value: start + (min(max(value, low), high) - low) / (high - low) * (end - start)


def short(name: str, length: int) -> str:
    """A name of at most ``length`` letters; what is cut off leaves an ellipsis."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _told(told: str, element: str) -> str:
    return f"><title>{escaped(told)}</title></{element}>" if told else "/>"


def _joined(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
