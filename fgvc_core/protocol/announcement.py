"""The announcement of a run: what a registered site may know before it takes part."""

import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.configuration import MAX_CHARACTERS
from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, sign, verify
from fgvc_core.protocol.ledger_statement import SignedReply
from fgvc_core.protocol.messages import Reply, Sealed
from fgvc_core.protocol.ranges import ClassNames

_DOMAIN = b"fieldmark announcement v1\n"
MAX_BYTES = 4_000_000


class Announcement(BaseModel):
    """A run, as announced by its coordinator."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: str = Field(max_length=128)
    recipe: str = Field(max_length=MAX_CHARACTERS, description="The resolved recipe (TOML).")
    recipe_digest: str = Field(min_length=64, max_length=64)
    class_names: ClassNames = ()
    version: str = Field(max_length=64)
    code: str = Field(max_length=64, description="Digest of the code at the coordinator.")


def seal_announcement(key: PrivateKey, announcement: Announcement) -> Sealed:
    """Sign an announcement."""
    text = announcement.model_dump_json()
    return Sealed(text, sign(key, _DOMAIN + text.encode()))


def read_seen(text: str, key: PublicKey) -> Reply | None:
    """The site's own reply with the longest ledger that the coordinator has seen, if it sends one.

    The coordinator's signature is not needed, because the reply has the site's.

    Args:
        text: The gateway's answer.
        key: The site's own key.

    Raises:
        PeerError: if the site's key has not signed the reply.
    """
    try:
        seen = json.loads(text)["seen"]
        signed = SignedReply.model_validate(seen)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return signed.check([key])


def read_announcement(text: str, key: PublicKey) -> Announcement | None:
    """The announcement in the gateway's answer; None if no run is announced.

    Raises:
        PeerError: if it is malformed, or not signed by the coordinator.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError("it is too long")
        values = json.loads(text)
        if values.get("run", "") is None:
            return None
        body, signature = str(values["body"]), bytes.fromhex(values["signature"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerError(f"The coordinator's announcement cannot be read: {error}.") from None
    if not verify(key, _DOMAIN + body.encode(), signature):
        raise PeerError(
            "The announcement is not signed by the coordinator's key.",
            why="Somebody else answers in its place, or it has a new key.",
            remedy="Ask the coordinator, by another way than this one.",
        )
    try:
        return Announcement.model_validate_json(body)
    except ValidationError as error:
        raise PeerError(f"The announcement is malformed: {error.errors()[0]['msg']}.") from None
