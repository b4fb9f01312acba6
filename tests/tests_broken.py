"""Mechanisms broken on purpose: only tests can do it, by replacing what is installed."""

import numpy as np
import pytest

from fgvc_core.privacy.sampling import draw_units

HOW = ("noise off", "clipping off", "four times the rate")


def break_mechanism(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Replace a part of the installed mechanism under every name by which it is called."""
    if how == "noise off":
        monkeypatch.setattr("fgvc_core.training.private.release", lambda values, grid: values)
    elif how == "clipping off":
        for room in ("fgvc_core.privacy.gradients", "fgvc_core.privacy.class_sums"):
            monkeypatch.setattr(f"{room}.clip_scales", lambda squares, bound: np.ones_like(squares))
    else:
        assert how == "four times the rate"
        monkeypatch.setattr(
            "fgvc_core.training.private.draw_units",
            lambda units, rate: draw_units(units, min(4 * rate, 1.0)),
        )
