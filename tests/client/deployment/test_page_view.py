"""The budget as a picture says what the budget says, and its labels are apart."""

import re

import pytest
from legible import figures_of

from fgvc_core.drawing.style import status_style
from fieldmark.client.deployment.page_view import budget_figure, budget_in_words


def budget(spent, cap):
    left = None if cap is None else max(cap - spent, 0.0)
    return {"spent": spent, "cap": cap, "left": left, "delta": 1e-5}


def widths(drawn):
    return {style: float(width) for style, width in
            re.findall(r'<rect class="(\w+)"[^>]* width="([\d.]+)"', drawn)}  # fmt: skip


def test_the_bar_is_the_cap_and_its_parts_are_what_is_spent_and_what_waits():
    totals = ((True, 6.0), (False, 99.0), (True, None))
    waiting = [{"allowed": allowed, "total_after": total} for allowed, total in totals]
    found = widths(budget_figure(budget(2.0, 8.0), waiting))
    assert found["spent"] / found["whole"] == pytest.approx(0.25, abs=0.01)
    assert found["would"] / found["whole"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("spent", "cap"), [(0.0, 8.0), (9.5, 8.0), (3.2, None), (0.0, None),
                                            (0.001, 0.01), (123.4, 1000.0)])  # fmt: skip
def test_its_labels_are_legible_on_a_phone(spent, cap):
    drawn = budget_figure(budget(spent, cap))
    # The status pages have another margin above; width and cards are those of all pages.
    (figure,) = figures_of(f"<style>{status_style()}</style>{drawn}")
    assert figure.smallest_px >= 11
    assert (figure.outside, figure.overlapping) == ([], [])
    assert figure.title == budget_in_words(budget(spent, cap))
    found = widths(drawn)
    assert found["spent"] <= found["whole"]
