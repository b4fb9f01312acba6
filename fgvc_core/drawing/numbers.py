"""How numbers are written on every page: shares, differences, counts, sizes and times.

A number and its unit are held together by a space that does not break.
"""

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "–"


def percent(share: float | None) -> str:
    """A share with one decimal.

    >>> percent(0.9701).replace(SPACE, " ")
    '97.0 %'
    """
    return MISSING if share is None else f"{100 * share:.1f}{SPACE}%"


def points(difference: float | None) -> str:
    """A difference of two shares, in points of a percent, with its sign."""
    return MISSING if difference is None else f"{100 * difference:+.1f}{SPACE}points"


def count(number: int | None) -> str:
    """A whole number with a comma for each thousand."""
    return MISSING if number is None else f"{number:,}"


def size(nbytes: float | None) -> str:
    """Bytes with three digits, in powers of a thousand.

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
    """A time span, to the second below an hour and to the minute above."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
