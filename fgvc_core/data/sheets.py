"""Text of a CSV as people save it: byte-order marks, separators, comment lines, kinds of paths."""

import csv
import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

SEPARATORS = (",", ";", "\t", "|")

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_UTF8 = b"\xef\xbb\xbf"


def utf8_lines(content: bytes) -> bytes:
    """Bytes of a text file in UTF-8 without a byte-order mark.

    UTF-16 and UTF-32 are recognized by their marks, as Excel's "Unicode text" has one. Other
    encodings have no mark and stay as they are: what is not UTF-8 is refused where it is read.
    """
    if content.startswith(_UTF32):
        return content.decode("utf-32", "replace").encode()
    if content.startswith(_UTF16):
        return content.decode("utf-16", "replace").encode()
    return content.removeprefix(_UTF8)


def without_preamble(content: bytes) -> tuple[bytes, int, str]:
    """Skip what stands before a header: comment lines (``#``), blank lines, Excel's ``sep=;``.

    Returns:
        The content from the header on, the number of lines skipped, and the separator that a
        ``sep=`` line names (empty: none).
    """
    skipped, separator = 0, ""
    while content:
        line, newline, rest = content.partition(b"\n")
        text = line.strip()
        if text.lower().startswith(b"sep=") and len(text) == 5:
            separator = text[4:].decode("latin-1")
        elif line.startswith(b"sep=\t"):
            separator = "\t"
        elif text and not text.startswith(b"#"):
            break
        if not newline:
            return b"", skipped, separator
        content, skipped = rest, skipped + 1
    return content, skipped, separator


def separator_of(header: str) -> str:
    """Separator that splits a header into the most names; the comma if none does.

    >>> separator_of("path;label"), separator_of("path"), separator_of('"a;b",label,x')
    (';', ',', ',')
    """

    def fields(separator: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=separator), []))
        except csv.Error:
            return 0

    return max(SEPARATORS, key=lambda separator: (fields(separator), separator == ","))


def plain_path(value: str, root: Path) -> str:
    r"""A picture's path as tables name it, relative to the root where it lies below it.

    ``file://`` addresses and backslashes become paths, and one path has one spelling, so that one
    picture cannot be listed twice unnoticed.

    >>> [plain_path(p, Path("/data")) for p in ("./a.png", "x//b/../a.png", r"x\a.png")]
    ['a.png', 'x/a.png', 'x/a.png']
    >>> [plain_path(p, Path("/data")) for p in ("file:///data/x/a%20b.png", "/data/a.png")]
    ['x/a b.png', 'a.png']
    """
    if not value:
        return value
    if value[:5].lower() == "file:":
        try:
            value = unquote(urlsplit(value).path) or value
        except ValueError:
            return value
    value = posixpath.normpath(value.replace("\\", "/"))
    top = posixpath.normpath(str(root)).rstrip("/") + "/"
    return value.removeprefix(top) if value.startswith(top) else value


def is_comment(fields: list[str], header: list[str]) -> bool:
    """Whether a line below the header is a comment and cannot be a picture's line."""
    return bool(fields) and fields[0].lstrip().startswith("#") and len(fields) != len(header)
