"""Elements of inline SVG figures, as text.

CSS classes of the page set the colors, so a figure follows the page's theme. Coordinates are in a
view box of fixed width, which the page scales. Text is escaped here, and its hidden characters are
shown as codes.
"""

from collections.abc import Callable, Iterable

from fgvc_core.words import escaped

Point = tuple[float, float]


def figure(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """A whole figure.

    Args:
        title: Text alternative for readers who cannot see the figure.
        width: Width of the view box.
        height: Height of the view box.
        parts: Elements, in painting order.
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
    """A line through the points."""
    return f'<polyline class="{style}" points="{_joined(points)}"/>'


def polygon(points: Iterable[Point], style: str) -> str:
    """A filled shape with these corners."""
    return f'<polygon class="{style}" points="{_joined(points)}"/>'


def circle(x: float, y: float, radius: float, style: str, told: str = "") -> str:
    """A disc; ``told`` is its tooltip."""
    head = f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.3g}"'
    return f"{head}{_told(told, 'circle')}"


def rectangle(
    x: float, y: float, width: float, height: float, style: str, told: str = "", opacity: float = 1
) -> str:
    """A rectangle; ``told`` is its tooltip."""
    faint = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    head = (
        f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"{faint}'
    )
    return f"{head}{_told(told, 'rect')}"


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear map from ``low`` to ``high`` onto ``start`` to ``end``.

    Values outside are clipped; if the range is empty, all values map to the middle.
    """
    if high <= low:
        return lambda value: (start + end) / 2
    return lambda value: start + (min(max(value, low), high) - low) / (high - low) * (end - start)


def short(name: str, length: int) -> str:
    """A name cut to ``length`` letters; an ellipsis replaces what is cut off."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _told(told: str, element: str) -> str:
    return f"><title>{escaped(told)}</title></{element}>" if told else "/>"


def _joined(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
