"""Self-contained HTML pages: one file, no scripts, no requests."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from fgvc_core.drawing.style import page_style
from fgvc_core.drawing.tables import folding
from fgvc_core.words import visible_lines


def percent(share: float) -> str:
    """A share as a percentage.

    >>> percent(0.925)
    '92.5 %'
    """
    return f"{100 * share:.1f} %"


def render_page(template: str, values: dict[str, Any], package: str = "fgvc_core.inference") -> str:
    """A page from a template; all values are escaped.

    Args:
        template: Name of the template, which has a place for ``style``.
        values: What it shows.
        package: The package that holds it.
    """
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        finalize=visible_lines,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = page_style(Path(__file__).parent / "page.css")
    environment.globals["percent"] = percent
    page = environment.get_template(template).render(style=Markup(style), **values)
    return folding(page)
