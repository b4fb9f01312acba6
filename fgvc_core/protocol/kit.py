"""The start kit: one signed file that tells a site how to reach and verify its coordinator.

The coordinator signs all of it, including its CA's certificate: comparing the fingerprint of the
coordinator's key with the one that the coordinator reads out authenticates the whole kit.

A kit contains no secret, unless the coordinator has also made the site's key (``key``): then
whoever has the kit can act as the site.
"""

import json
import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, read_public, sign, verify

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
MAX_KIT_BYTES = 100_000
_AGAIN = "Ask the coordinator for it again: it keeps every kit in its kits folder."
_DOMAIN = b"fieldmark start kit v1\n"


class StartKit(BaseModel):
    """What a site needs to know before it first contacts the coordinator."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int = Field(1, ge=1, le=1)
    site: str = Field(pattern=SITE_NAME, description="The name under which it is registered.")
    address: str = Field(pattern=ADDRESS, description="host:port of the coordinator's gateway.")
    ca: str = Field(max_length=20_000, description="PEM of the only CA that may vouch for it.")
    coordinator: str = Field(max_length=1000, description="Public key that signs requests.")
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the site's public key.")
    key: str = Field("", max_length=5000, description="The site's private key, if made for it.")
    version: str = Field("", max_length=64, description="Fieldmark's at the coordinator.")

    @property
    def coordinator_key(self) -> PublicKey:
        """The coordinator's public key.

        Raises:
            PeerError: if the kit's text is not such a key.
        """
        return read_public(self.coordinator)


def write_kit(kit: StartKit, path: Path, key: PrivateKey) -> None:
    """Sign a kit with the coordinator's key and write it, readable by its owner only."""
    body = kit.model_dump_json()
    values = {"body": body, "signature": sign(key, _DOMAIN + body.encode()).hex()}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1) + "\n")


def read_kit(path: Path) -> StartKit:
    """Read a kit and verify its signature with the coordinator's key in it.

    Only a person can verify that this key is the coordinator's: by its fingerprint.

    Raises:
        ConfigurationError: if the file is missing.
        PeerError: if the kit is damaged, was changed after signing, or has another format.
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
        body, signature = _parts(text, path)
        kit = StartKit.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise PeerError(
            f"The start kit '{path}' is damaged at '{where}': {first['msg']}.",
            remedy=_AGAIN,
        ) from None
    if not verify(kit.coordinator_key, _DOMAIN + body.encode(), signature):
        raise PeerError(
            f"The start kit '{path}' is not signed by the coordinator's key in it.",
            why="Somebody has changed it after it was made.",
            remedy=f"{_AGAIN} Compare the key's fingerprint on the telephone.",
        )
    return kit


def _parts(text: str, path: Path) -> tuple[str, bytes]:
    try:
        values = json.loads(text)
        return str(values["body"]), bytes.fromhex(values["signature"])
    except (ValueError, KeyError, TypeError):
        raise PeerError(
            f"The start kit '{path}' is damaged: it holds no signed text.",
            why="Kits of Fieldmark before signed kits are not taken either.",
            remedy=_AGAIN,
        ) from None


def is_site_name(name: str) -> bool:
    """Whether a name is valid for a site."""
    return re.fullmatch(SITE_NAME, name) is not None
