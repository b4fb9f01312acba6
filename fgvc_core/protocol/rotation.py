"""Rotation of a site's key, authorized by its old key: no new kit or ledger is needed."""

import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, public_text, sign, verify

_DOMAIN = b"fieldmark key rotation v1\n"


class Rotation(BaseModel):
    """The content that both keys sign."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    site: str = Field(max_length=128)
    old: str = Field(min_length=64, max_length=64, description="Fingerprint of the old key.")
    new: str = Field(max_length=1000, description="The new public key, one line of text.")


@dataclass(frozen=True)
class SignedRotation:
    """A rotation with two signatures: the old key authorizes it, the new one proves possession."""

    body: str
    by_old: str
    by_new: str

    def to_text(self) -> str:
        """The content of the rotation's file."""
        return json.dumps(vars(self), indent=1) + "\n"


def sign_rotation(site: str, fingerprint: str, old: PrivateKey, new: PrivateKey) -> SignedRotation:
    """Sign a rotation with both keys."""
    rotation = Rotation(site=site, old=fingerprint, new=public_text(new.public_key()))
    body = rotation.model_dump_json()
    message = _DOMAIN + body.encode()
    return SignedRotation(body, sign(old, message).hex(), sign(new, message).hex())


def read_rotation(text: str) -> tuple[Rotation, SignedRotation]:
    """Read a rotation's file; its signatures are not verified yet.

    Raises:
        PeerError: if it is malformed.
    """
    try:
        values = json.loads(text)
        signed = SignedRotation(values["body"], values["by_old"], values["by_new"])
        return Rotation.model_validate_json(signed.body), signed
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise PeerError(f"This is no rotation of a key: {error}.") from None


def check_rotation(signed: SignedRotation, old: PublicKey, new: PublicKey) -> None:
    """Raise PeerError unless both keys have signed."""
    message = _DOMAIN + signed.body.encode()
    for which, key, text in (("old", old, signed.by_old), ("new", new, signed.by_new)):
        try:
            signature = bytes.fromhex(text)
        except ValueError:
            signature = b""
        if not verify(key, message, signature):
            raise PeerError(
                f"The rotation is not signed by the site's {which} key.",
                why="Anybody could take the site's place otherwise.",
                remedy="A site that has lost its key asks for: fieldmark server replace-key.",
            )
