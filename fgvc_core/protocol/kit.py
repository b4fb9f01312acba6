"""The start kit: the one file by which a site learns whom to talk to.

It holds nothing secret, unless the coordinator has made the site's key too (``key``):
whoever has that kit is the site.
"""

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import ConfigurationError, PeerError

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
MAX_KIT_BYTES = 100_000


class StartKit(BaseModel):
    """What a site needs to know before its first contact."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int = Field(1, ge=1, le=1)
    site: str = Field(pattern=SITE_NAME, description="The name under which it is registered.")
    address: str = Field(pattern=ADDRESS, description="host:port of the coordinator's gateway.")
    ca: str = Field(max_length=20_000, description="PEM of the only CA that may vouch for it.")
    coordinator: str = Field(max_length=1000, description="Public key that signs requests.")
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the site's public key.")
    key: str = Field("", max_length=5000, description="The site's private key, if made for it.")
    version: str = Field("", max_length=64, description="Fieldmark's at the coordinator.")


def write_kit(kit: StartKit, path: Path) -> None:
    """Write a kit readable by its owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(kit.model_dump_json(indent=1) + "\n")


def read_kit(path: Path) -> StartKit:
    """Read a kit.

    Raises:
        ConfigurationError: if there is no such file.
        PeerError: if it is damaged or of another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The start kit '{path}' cannot be read: {error}.",
            remedy="Name the .kit file that the coordinator has sent.",
        ) from None
    try:
        if len(text) > MAX_KIT_BYTES:
            raise PeerError(f"'{path}' is no start kit: it has {len(text)} characters.")
        return StartKit.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise PeerError(
            f"The start kit '{path}' is damaged at '{where}': {first['msg']}.",
            remedy="Ask the coordinator for it again: it keeps every kit in its kits folder.",
        ) from None


def is_site_name(name: str) -> bool:
    """Whether a name can be a site's."""
    return re.fullmatch(SITE_NAME, name) is not None
