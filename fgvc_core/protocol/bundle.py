"""The Flower app bundle (FAB) of every run: a description of an app, without code.

Flower ships an app's code to every node in a zip file (a FAB). This one contains no code: sites and
coordinator run what they have installed. Every installation builds the same bytes (without
compression, dates or versions), so a receiver can compare a bundle with its own.
"""

import hashlib
import io
import zipfile
from functools import lru_cache

from fgvc_core.errors import PeerError

PUBLISHER, APP, FORMAT = "fieldmark", "fieldmark-run", "1.0.0"
RUN_KEY = "run-dir"
"""The only setting of a run: its folder at the coordinator."""

_DESCRIPTION = f"""[project]
name = "{APP}"
version = "{FORMAT}"
description = "A run of Fieldmark: each party runs the code that it has installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "{PUBLISHER}"

[tool.flwr.app.components]
serverapp = "fieldmark.server.app:app"
clientapp = "fieldmark.client.app:app"

[tool.flwr.app.config]
{RUN_KEY} = ""
"""
MAX_BUNDLE_BYTES = 64_000
"""Largest bundle that is inspected."""


@lru_cache(maxsize=1)
def make_bundle() -> bytes:
    """The bundle; byte-equal in every installation."""
    description = _DESCRIPTION.encode()
    listed = f"pyproject.toml,{hashlib.sha256(description).hexdigest()},{len(description) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in (("pyproject.toml", description), (".info/CONTENT", listed.encode())):
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def check_bundle(bundle: bytes) -> None:
    """Refuse a bundle that is not byte-equal to ours; nothing in it is unpacked or loaded.

    Raises:
        PeerError: names the difference.
    """
    if bundle == make_bundle():
        return
    raise PeerError(
        f"The run's bundle is not Fieldmark's own: {_difference(bundle)}.",
        why="A bundle can carry code, and only installed code runs here.",
        remedy="Start runs with 'fieldmark server run', the same version at both ends.",
    )


def _difference(bundle: bytes) -> str:
    if len(bundle) > MAX_BUNDLE_BYTES:
        # A site keeps no more than this of a larger bundle, so its actual size is unknown.
        return f"it has more than {MAX_BUNDLE_BYTES} bytes"
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as file:
            names = [info.filename for info in file.infolist()]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return "it is no zip file"
    allowed = {"pyproject.toml", ".info/CONTENT"}
    others = sorted(name for name in names if name not in allowed)
    if others:
        return "it also carries " + ", ".join(repr(name[:80]) for name in others[:5])
    return "its description of the app differs"
