"""A report is compared to the byte: a change of its look is a change of its format."""

import hashlib
from importlib.resources import files

from fgvc_core.drawing.style import page_style
from fieldmark.client.privacy.report.writing import FORMAT

LOOKS = {"fieldmark privacy report 4": "14b006a54022f4cc"}
"""Format -> first digits of the SHA-256 of style sheets and template. A new look is a new format:
raise the number in ``writing.py`` and write its digest here."""


def test_the_look_is_that_of_the_format():
    room = files("fieldmark.client.privacy.report")
    template = (room / "page.html.j2").read_text("utf-8")
    look = hashlib.sha256((page_style(room / "page.css") + template).encode()).hexdigest()
    assert LOOKS[FORMAT] == look[:16]
