"""TOML from outside, read within limits.

The standard library's parser takes time that grows with the square of a dotted key's length (27 s
for one of 80 kB), and recurses once for each nested array. A recipe may come from a coordinator
that means harm, or be a file that is no recipe at all: size, depth, the length of keys and of
bare values are looked at before the parser sees any of it, in one pass over the text.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError

MAX_CHARACTERS = 2_000_000
"""Longest text that is parsed. The attributes of 5,000 classes fit."""

MAX_DEPTH = 16
"""Most arrays and tables inside each other."""

MAX_DOTS = 8
"""Most dots in one key or one table's name: nine names inside each other."""

MAX_WORD = 128
"""Most characters of a bare key, a quoted key, a number or a date."""

_TOKEN = re.compile(
    r'"""(?:[^\\"]|\\[\s\S]|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[\"']"
    r"|#[^\n]*"
    r"|[A-Za-z0-9_+-]+"
    r"|[\[\]{}=,.\n]"
)
"""A string, a quotation mark that opens none, a comment, a bare word, or a mark."""


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Plain values from TOML text.

    Args:
        text: Of any origin.
        where: What it was read from, for messages.

    Raises:
        ConfigurationError: if it is beyond a limit, or is not TOML.
    """
    beyond = _beyond(text)
    if beyond:
        raise ConfigurationError(
            f"{where} is not read: {beyond}.",
            why="Nothing was started; reading it could take minutes or much memory.",
            remedy="No setting needs so much: write it anew, for instance after an example in "
            "simulations/recipes/.",
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: a number of 5,000 digits is a ValueError of its own.
        raise ConfigurationError(
            f"{where} is not TOML: {error}.",
            why="Nothing was started.",
            remedy="Mend the line it names; text values need quotes.",
        ) from None


def read_toml_file(path: Path, what: str, remedy: str, why: str = "") -> dict[str, Any]:
    """Plain values from a TOML file that a person has written, within the same limits.

    Args:
        path: The file.
        what: What it is, for messages: "The site's settings".
        remedy: What to do where it is missing or no text.
        why: What follows from that.

    Raises:
        ConfigurationError: if it cannot be read, is beyond a limit, or is not TOML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # No more than can be parsed: one character more says that it is too long.
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{what} '{path}' cannot be read: {error}.", why=why, remedy=remedy
        ) from None
    return read_toml(text, str(path))


def _beyond(text: str) -> str:
    """Which limit a text is beyond, in words; empty where none."""
    if len(text) > MAX_CHARACTERS:
        return f"it has {len(text):,} characters, and {MAX_CHARACTERS:,} at most are read"
    depth = dots = line = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        first = token[0]
        if first == "\n":
            line += 1
            dots = 0
        elif first in "=,":
            dots = 0
        elif first in "[{":
            depth, dots = depth + 1, 0
        elif first in "]}":
            depth, dots = max(depth - 1, 0), 0
        elif first == ".":
            dots += 1
        elif token in ("'", '"'):
            # A string without an end: the parser refuses it, and reads nothing behind it.
            break
        elif first in "\"'":
            line += token.count("\n")
        elif first != "#" and len(token) > MAX_WORD:
            return f"a word in line {line + 1} is longer than {MAX_WORD} characters"
        if depth > MAX_DEPTH:
            return f"line {line + 1} goes more than {MAX_DEPTH} levels deep"
        if dots > MAX_DOTS:
            return f"a key in line {line + 1} has more than {MAX_DOTS} dots"
    return ""
