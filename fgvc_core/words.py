"""Text from outside, made fit to be shown: nothing in it can pass for words of ours.

A notice, a reason, a name or an id that somebody else has written may hold line breaks (which
forge a line of a log), escape sequences (which move a terminal's cursor), or marks that turn the
direction of what stands beside them. All of them are shown by their code instead.

What else can go wrong depends on where text is shown: a spreadsheet computes a cell that begins
with ``=``, Markdown makes tables and links of marks. HTML and SVG are escaped where they are made
(jinja's autoescape, :func:`escaped`), the terminal by :mod:`fgvc_core.console`.
"""

import html
import logging
import unicodedata
from typing import Any

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control, format (bidirectional marks too) and surrogate characters, and its line
and paragraph separators."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKS = frozenset("\\|<>[]`*_&~$")

CONTINUED = "  | "
"""What every further line of a log record begins with: no such line can pass for a record."""


def visible(text: str) -> str:
    r"""Text on one line, each control, format or separator character shown by its code.

    >>> visible("done\n2026-01-01 ERROR \x1b[31mforged")
    'done\\n2026-01-01 ERROR \\x1b[31mforged'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def visible_lines(value: Any) -> Any:
    r"""A value of a template as :func:`visible` shows it, its lines kept; others than text as is.

    For jinja's ``finalize``: no template has to think of it. What is marked safe was made by us.

    >>> visible_lines("a\x1b[2J\nb"), visible_lines(3)
    ('a\\x1b[2J\nb', 3)
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(visible(line) for line in value.split("\n"))


def escaped(text: str) -> str:
    r"""Text inside an element or an attribute of HTML or SVG: no tag, and nothing hidden.

    >>> escaped("<b>\x1b[2J")
    '&lt;b&gt;\\x1b[2J'
    """
    return html.escape(visible(text))


def csv_cell(text: str) -> str:
    """Text as a cell of a CSV: no spreadsheet takes it for a formula.

    OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection. A quotation
    mark in front, which spreadsheets do not show, is all that changes.

    >>> csv_cell("=1+2"), csv_cell("Pica pica")
    ("'=1+2", 'Pica pica')
    """
    shown = visible(text)
    return f"'{shown}" if text.startswith(_FORMULA) else shown


def markdown_cell(text: str) -> str:
    r"""Text inside a sentence or a cell of Markdown: no tag, link, mark or cell of its own.

    >>> markdown_cell("a | <b> [x](y)")
    'a \\| \\<b\\> \\[x\\](y)'
    """
    shown = visible(" ".join(text.split()))
    return "".join(f"\\{c}" if c in _MARKS else c for c in shown)


class OneRecord(logging.Formatter):
    """A log formatter whose every record is one line, and a traceback set off from all records.

    It works on the finished text: no call that logs has to think of it.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's line, whatever its message holds."""
        return visible(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the traceback, each line of it marked as one."""
        first, *rest = super().format(record).split("\n")
        return "\n".join([first, *(CONTINUED + visible(line) for line in rest)])


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
