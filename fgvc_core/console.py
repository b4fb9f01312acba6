"""The terminal: words from outside are shown as they are, and do nothing.

A name such as ``[/]`` or ``[red]`` is markup to rich, and crashes or colours what is printed; an
escape sequence clears the screen or writes over the line above. Whatever may show a name, a
reason or a path prints through :class:`PlainConsole`, which takes no markup and lets no control
character through. Styles are given as styles.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fgvc_core.words import visible


class PlainConsole(Console):
    """A console without markup, whose text has no control characters but ends of lines.

    Takes what :class:`rich.console.Console` takes. A line break in a word from outside would still
    be one: words that stand in a table or in a sentence go through
    :func:`fgvc_core.words.visible` first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "markup": False, "emoji": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments, their text made visible; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                shown = "\n".join(visible(line) for line in segment.text.split("\n"))
                yield Segment(shown, segment.style)
