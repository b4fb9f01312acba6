"""Makes untrusted text safe to show: in logs, terminals, HTML, CSV and Markdown.

Text from others (a notice, a reason, a name, an id) may contain line breaks (which forge a line of
a log), escape sequences (which move a terminal's cursor), or bidirectional marks (which reorder the
text beside them). All of these are shown as codes.

Further risks depend on the medium: a spreadsheet evaluates a cell that begins with ``=``, and
Markdown interprets marks as tables and links. HTML and SVG are escaped where they are made (Jinja's
autoescape, :func:`escaped`); the terminal is handled by :mod:`fgvc_core.console`.
"""

import html
import logging
import unicodedata
from typing import Any

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (includes bidirectional marks), surrogate, and line and
paragraph separators."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKS = frozenset("\\|<>[]`*_&~$")

CONTINUED = "  | "
"""Prefix of every further line of a log record, so that none can be taken for a record."""


def visible(text: str) -> str:
    r"""Text on one line, with control, format and separator characters shown as codes.

    >>> visible("done\n2026-01-01 ERROR \x1b[31mforged")
    'done\\n2026-01-01 ERROR \\x1b[31mforged'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def visible_lines(value: Any) -> Any:
    r"""Apply :func:`visible` to each line of a text in a template; other values stay as they are.

    For Jinja's ``finalize``, so it covers every value of every template. Markup that is marked safe
    is ours and stays too.

    >>> visible_lines("a\x1b[2J\nb"), visible_lines(3)
    ('a\\x1b[2J\nb', 3)
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(visible(line) for line in value.split("\n"))


def escaped(text: str) -> str:
    r"""Text for an element or attribute of HTML or SVG: escaped, and hidden characters visible.

    >>> escaped("<b>\x1b[2J")
    '&lt;b&gt;\\x1b[2J'
    """
    return html.escape(visible(text))


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun, or with noun and verb, in the right number.

    >>> counted(1, "picture is", "pictures are"), counted(2000, "class", "classes")
    ('1 picture is', '2,000 classes')

    Args:
        count: The count.
        one: Words for one.
        many: Words for any other count; by default ``one`` with an "s".
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def csv_cell(text: str) -> str:
    """Text for a cell of a CSV file, which no spreadsheet takes for a formula.

    OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection. The only change
    is a leading quotation mark, which spreadsheets do not show.

    >>> csv_cell("=1+2"), csv_cell("Pica pica")
    ("'=1+2", 'Pica pica')
    """
    shown = visible(text)
    return f"'{shown}" if text.startswith(_FORMULA) else shown


def markdown_cell(text: str) -> str:
    r"""Text for a sentence or table cell in Markdown, with all marks escaped.

    >>> markdown_cell("a | <b> [x](y)")
    'a \\| \\<b\\> \\[x\\](y)'
    """
    shown = visible(" ".join(text.split()))
    return "".join(f"\\{c}" if c in _MARKS else c for c in shown)


class OneRecord(logging.Formatter):
    """A log formatter that writes every record on one line, and marks the lines of a traceback.

    It works on the finished text, so it covers every logging call.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return visible(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, followed by the marked lines of the traceback."""
        first, *rest = super().format(record).split("\n")
        return "\n".join([first, *(CONTINUED + visible(line) for line in rest)])


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
