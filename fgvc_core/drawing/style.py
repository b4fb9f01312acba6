"""The style sheet of pages: ``base.css`` for all, a page's own, and ``print.css`` for paper."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def page_style(own: Path | None = None) -> str:
    """Style of a page: colors (light and dark), letters, cards, figures, folding tables, paper.

    Args:
        own: The page's own sheet. It may change what all share, but not how a page is printed.
    """
    sheets = (_FOLDER / "base.css", own, _FOLDER / "print.css")
    return "".join(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet)


def status_style() -> str:
    """:func:`page_style` of the pages of a site and of a coordinator on loopback."""
    return page_style(_FOLDER / "status.css")


def again_script() -> str:
    """Script by which a status page looks again by itself, without losing what a person types."""
    return (_FOLDER / "again.js").read_text(encoding="utf-8")
