"""Text from outside, made fit to be shown: nothing in it can pass for words of ours.

A notice, a reason, a name or an id that somebody else has written may hold line breaks (which
forge a line of a log), escape sequences (which move a terminal's cursor), or marks that turn the
direction of what stands beside them. All of them are shown by their code instead.
"""

import logging
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control, format (bidirectional marks too) and surrogate characters, and its line
and paragraph separators."""

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
