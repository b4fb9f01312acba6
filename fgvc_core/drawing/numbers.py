"""Formatting of numbers on every page: shares, differences, counts, sizes and times.

A non-breaking space joins a number and its unit.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "–"


def percent(share: float | None) -> str:
    """A share with one decimal.

    >>> percent(0.9701).replace(SPACE, " ")
    '97.0 %'
    """
    return MISSING if share is None else f"{100 * share:.1f}{SPACE}%"


def bounds(interval: Sequence[float] | None) -> str:
    """An interval of shares; nothing without one.

    >>> bounds((0.763, 0.8)).replace(SPACE, " ")
    '76.3 to 80.0 %'
    """
    if interval is None:
        return ""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}{SPACE}%"


def points(difference: float | None) -> str:
    """A signed difference of two shares, in percentage points."""
    return MISSING if difference is None else f"{100 * difference:+.1f}{SPACE}points"


def count(number: int | None) -> str:
    """A whole number with commas between thousands."""
    return MISSING if number is None else f"{number:,}"


def size(nbytes: float | None) -> str:
    """A number of bytes with three digits, in powers of 1000.

    >>> size(5_720_000).replace(SPACE, " ")
    '5.72 MB'
    """
    if nbytes is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g}{SPACE}{unit}"
        nbytes /= 1000
    return f"{nbytes:.3g}{SPACE}TB"


def span(seconds: float | None) -> str:
    """A duration, to the second below an hour and to the minute above."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(time: str) -> str:
    """A time in ISO 8601 (UTC), to the minute.

    >>> moment("2026-11-30T20:12:51+00:00").replace(SPACE, " ")
    '2026-11-30 20:12 UTC'
    """
    return f"{time[:10]}{SPACE}{time[11:16]}{SPACE}UTC"


def instant(seconds: float) -> str:
    """A time in seconds since 1970, as :func:`moment`."""
    return moment(datetime.fromtimestamp(seconds, UTC).isoformat())
