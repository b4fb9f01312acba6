"""Axes of figures: the width that keeps labels legible on a phone, and round ticks.

A page scales a figure's view box to the room it has, and the labels with it. The narrowest room is
that of a card on a screen of 390 px. The view box is hardly wider than that, so that labels have at
least 11 px there; wide screens get smaller type from the page's style.
"""

import math

SCREEN_PX = 390
"""Narrowest screen that pages are drawn for."""
ROOM_PX = SCREEN_PX - 2 * 20 - 2 * 18 - 2
"""Width of a figure on it: without the page's margins, and the card's padding and border."""
LEAST_LABEL_PX = 11.0

WIDTH = 340.0
"""Width of a figure's view box."""
LETTER = 7.0
"""Generous width of a letter of a label, in units of the view box."""

_STEPS = (1.0, 2.0, 5.0, 10.0)


def round_step(span: float, most: int) -> float:
    """Smallest step of 1, 2 or 5 times a power of ten with at most ``most`` steps in a span.

    >>> round_step(2.6, 5), round_step(0.3, 5), round_step(48, 5)
    (1.0, 0.1, 10.0)
    """
    if span <= 0 or not math.isfinite(span):
        return 1.0
    least = span / most
    power = 10.0 ** math.floor(math.log10(least))
    # The small term keeps 0.3 / 3 from asking for more than 0.1.
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values from a range, evenly spaced.

    >>> round_ticks(0, 2.6)
    [0.0, 1.0, 2.0]
    """
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def round_top(high: float, most: int = 5) -> float:
    """The end of an axis from 0: the first round tick that is not below a value.

    >>> round_top(2.73), round_top(0.0)
    (3.0, 1.0)
    """
    if high <= 0 or not math.isfinite(high):
        return 1.0
    step = round_step(high, most)
    return round(math.ceil(high / step - 1e-9) * step, max(0, -math.floor(math.log10(step))))


def count_ticks(last: int, most: int = 6) -> list[int]:
    """Round whole numbers from 1 to ``last``, evenly spaced, for an axis of rounds.

    >>> count_ticks(48), count_ticks(7), count_ticks(1)
    ([10, 20, 30, 40], [2, 4, 6], [1])
    """
    step = max(round(round_step(max(last, 1), most)), 1)
    return list(range(step, last + 1, step))
