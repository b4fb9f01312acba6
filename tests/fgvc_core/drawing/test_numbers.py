"""How numbers are written."""

import pytest

from fgvc_core.drawing.numbers import MISSING, SPACE, count, percent, points, size, span


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (percent(0.9701), "97.0 %"),
        (points(-0.0123), "-1.2 points"),
        (count(1234567), "1,234,567"),
        (size(999), "999 B"),
        (size(5_720_000), "5.72 MB"),
        (size(2e12), "2 TB"),
        (span(59.6), "1 min 0 s"),
        (span(7322), "2 h 2 min"),
    ],
)
def test_a_number_is_written_with_its_unit(written, shown):
    assert written.replace(SPACE, " ") == shown


@pytest.mark.parametrize("write", [percent, points, count, size, span])
def test_what_is_missing_is_a_dash(write):
    assert write(None) == MISSING
