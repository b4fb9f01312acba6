"""The style sheets of pages: ``base.css`` for all, ``status.css`` for the pages on loopback."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def base_style() -> str:
    """Colors (light and dark), letters, cards, figures and folding tables."""
    return (_FOLDER / "base.css").read_text(encoding="utf-8")


def status_style() -> str:
    """:func:`base_style`, and what the pages of a site and of a coordinator need beside it."""
    return base_style() + (_FOLDER / "status.css").read_text(encoding="utf-8")


def again_script() -> str:
    """Script by which a status page looks again by itself, without losing what a person types."""
    return (_FOLDER / "again.js").read_text(encoding="utf-8")
