"""Whether a sweep's best setting is told apart from the others, or only came first by chance.

With several seeds, settings are compared seed by seed (Student's t for paired differences): a seed
deals the same partition and the same initial tensors to all. With one seed nothing is known of the
chance of a training; then only the test pictures speak, as if they were independent and each
setting had been scored on others (Newcombe 1998, "Interval estimation for the difference between
independent proportions", method 10, Statistics in Medicine 17). Both are single tests: of many
settings that are alike, about one in twenty is told apart by chance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from fgvc_core.inference.intervals import wilson
from fieldmark.simulations.sweeping.table import Row

LEVEL = 0.95
BEST, APART, NOT_APART = "best", "below the best", "not told apart from the best"


def tell_apart(
    rows: Sequence[Row], table: Sequence[Row], score: str
) -> list[dict[str, Any] | None]:
    """Compare each setting with the one of the highest mean.

    Args:
        rows: All runs.
        table: One entry per setting.
        score: The figure to compare by.

    Returns:
        For each setting ``told`` (:data:`BEST`, :data:`APART` or :data:`NOT_APART`), and
        ``difference`` from the best with ``low`` and ``high`` (None for the best); None for a
        setting without a score.
    """
    scored = [entry for entry in table if entry[score] is not None]
    if not scored:
        return [None for _ in table]
    best = max(scored, key=lambda entry: entry[score])
    found: list[dict[str, Any] | None] = []
    for entry in table:
        if entry[score] is None:
            found.append(None)
        elif entry is best:
            found.append({"told": BEST, "difference": None, "low": None, "high": None})
        else:
            found.append(_against(entry, best, rows, score))
    return found


def in_words(table: Sequence[Row], told: Sequence[dict[str, Any] | None], score: str) -> str:
    """One sentence on the best setting, and how many are not told apart from it."""
    marks = [(entry, mark) for entry, mark in zip(table, told, strict=True) if mark is not None]
    if not marks:
        return ""
    best = next(entry for entry, mark in marks if mark["told"] == BEST)
    name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in best["settings"].items())
    alike = sum(mark["told"] == NOT_APART for _, mark in marks)
    if not alike:
        return f"{name} is best" if len(marks) > 1 else name
    if alike == len(marks) - 1:
        return f"no setting is told apart from the highest mean, {name}"
    are = "is" if alike == 1 else "are"
    return (
        f"{name} has the highest mean, and {alike} of {len(marks) - 1} others {are} not told apart "
        "from it"
    )


def _against(entry: Row, best: Row, rows: Sequence[Row], score: str) -> dict[str, Any]:
    difference = entry[score] - best[score]
    own, others = _by_seed(rows, entry, score), _by_seed(rows, best, score)
    seeds = sorted(own.keys() & others.keys())
    if len(seeds) > 1:
        low, high = _paired([own[s] for s in seeds], [others[s] for s in seeds])
    else:
        low, high = _of_shares(entry, best, rows, score)
    # The interval is for common seeds; the means may include more runs.
    apart = high < 0
    return {
        "told": APART if apart else NOT_APART, "difference": difference, "low": low, "high": high,
    }  # fmt: skip


def _paired(own: list[float], others: list[float]) -> tuple[float, float]:
    gaps = [one - other for one, other in zip(own, others, strict=True)]
    if max(gaps) == min(gaps):
        return gaps[0], gaps[0]
    found = ttest_rel(own, others).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def _of_shares(entry: Row, best: Row, rows: Sequence[Row], score: str) -> tuple[float, float]:
    """Interval of the difference of two shares of test pictures, or all there is without them."""
    pictures = [_pictures(rows, one) for one in (entry, best)]
    if score != "top1" or None in pictures:
        return -1.0, 1.0
    (p1, l1, u1), (p2, l2, u2) = (
        _share(one[score], count or 0) for one, count in zip((entry, best), pictures, strict=True)
    )
    low = p1 - p2 - float(np.hypot(p1 - l1, u2 - p2))
    high = p1 - p2 + float(np.hypot(u1 - p1, p2 - l2))
    return low, high


def _share(share: float, count: int) -> tuple[float, float, float]:
    return share, *wilson(share, count, LEVEL)


def _by_seed(rows: Sequence[Row], entry: Row, score: str) -> dict[int, float]:
    return {
        row["seed"]: row[score]
        for row in rows
        if row["settings"] == entry["settings"] and row[score] is not None
    }


def _pictures(rows: Sequence[Row], entry: Row) -> int | None:
    counts = [row["test_examples"] for row in rows if row["settings"] == entry["settings"]]
    known = [count for count in counts if count]
    return known[0] if known else None
