"""The token of a site's page: a secret in the home, which only the home's account can read."""

import secrets
from pathlib import Path

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import write_privately

FILE = "page-token"
PAGE_NOTE = "page.json"
"""File in ``state/`` with the port of the site's page and, while it is served, its process."""
_BYTES = 24


def read_token(home: Path) -> str:
    """The token of a home; made at the first call, and again after the file was deleted.

    Raises:
        ConfigurationError: if it cannot be read or made, or other accounts can read it.
    """
    path = home / FILE
    try:
        if not path.exists():
            write_privately(path, secrets.token_urlsafe(_BYTES) + "\n")
        shared = path.stat().st_mode & 0o077
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The page's token '{path}' cannot be read: {error}.",
            remedy="Make the home writable for this account, or delete the file: it is made again.",
        ) from None
    if shared or len(token) < _BYTES:
        raise ConfigurationError(
            f"The page's token '{path}' is not a secret: its mode is open, or it is too short.",
            why="Whoever reads it can approve runs.",
            remedy="Delete the file; a new one is made.",
        )
    return token
