"""What the pages on loopback share: who may ask, the headers of an answer, the look, the script.

A page on loopback can be opened by every account of its machine, and by any web page that a
browser of this machine shows and whose name resolves to 127.0.0.1 (DNS rebinding). So the Host
header must name this machine; the content security policy (https://www.w3.org/TR/CSP3/) allows one
script and one style by their digest, and requests to the page itself.
"""

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse

from fgvc_core.drawing.numbers import count, instant, moment, percent, size, span
from fgvc_core.drawing.style import again_script, status_style
from fgvc_core.drawing.tables import folding
from fgvc_core.sockets import LOOPBACK
from fgvc_core.words import visible_lines

HOSTS = [LOOPBACK, "localhost"]
"""Accepted Host headers; any other is refused (DNS rebinding)."""

PLAIN = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Not "no-referrer": with it browsers hide the Origin of a form, which is checked.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer."""


def only_this_machine() -> Middleware:
    """Refuses requests for another host."""
    return Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)


class LocalPage:
    """One page of a template, rendered for each request.

    Args:
        package: The package that holds the template.
        template: Its name. It gets ``style`` and ``script``, and its tables fold on a phone.
    """

    def __init__(self, package: str, template: str) -> None:
        environment = Environment(
            loader=PackageLoader(package, ""),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=visible_lines,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(count=count, percent=percent, size=size, span=span)
        environment.filters.update(moment=moment, instant=instant)
        self._template = environment.get_template(template)
        self._style, self._script = status_style(), again_script()
        self._policy = (
            "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'; "
            f"connect-src 'self'; img-src data:; style-src {_digest(self._style)}; "
            f"script-src {_digest(self._script)}"
        )

    def answer(self, status_code: int = 200, **values: Any) -> HTMLResponse:
        """The page with these values, all of which are escaped."""
        text = self._template.render(
            style=Markup(self._style), script=Markup(self._script), **values
        )
        headers = {**PLAIN, "content-security-policy": self._policy}
        return HTMLResponse(folding(text), status_code, headers=headers)


def _digest(text: str) -> str:
    """A source expression of a content security policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
