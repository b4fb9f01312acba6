"""Terminal output that is safe for untrusted text: no markup, no control characters.

Rich interprets a name such as ``[/]`` or ``[red]`` as markup, which crashes or colors the output;
an escape sequence clears the screen or overwrites the line above. Everything that may show a name,
a reason or a path prints through :class:`PlainConsole`, and sets styles explicitly.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fgvc_core.words import visible


class PlainConsole(Console):
    """A console without markup whose text contains no control characters except line feeds.

    Takes the arguments of :class:`rich.console.Console`. A line feed inside untrusted text still
    breaks the line: pass text in a table or sentence through :func:`fgvc_core.words.visible` first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "markup": False, "emoji": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments with their text made visible; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                shown = "\n".join(visible(line) for line in segment.text.split("\n"))
                yield Segment(shown, segment.style)
