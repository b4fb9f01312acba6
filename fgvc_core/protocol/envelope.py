"""Signed bodies: who said it, and that nothing was changed on the way."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, sign, verify
from fgvc_core.protocol.messages import Reply, Request
from fgvc_core.protocol.validation import KitBody, ValidationReply

# A signature made for a request can never be taken for a reply's.
_DOMAINS: dict[type, bytes] = {
    Request: b"fieldmark request v1\n",
    Reply: b"fieldmark reply v1\n",
    KitBody: b"fieldmark validation kit v1\n",
    ValidationReply: b"fieldmark validation reply v1\n",
}

Body = TypeVar("Body", Request, Reply, KitBody, ValidationReply)


@dataclass(frozen=True)
class Sealed:
    """A body's text and its signature, as they travel."""

    text: str
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text: what was said, whoever signs it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def seal(key: PrivateKey, body: Request | Reply | KitBody) -> Sealed:
    """Sign a body."""
    text = body.model_dump_json()
    return Sealed(text, sign(key, _DOMAINS[type(body)] + text.encode()))


def unseal(
    kind: type[Body], sealed: Sealed, key: PublicKey, tensor_digests: Mapping[str, str]
) -> Body:
    """Check a signature, then read the body, then check the tensors beside it.

    Args:
        kind: Request or Reply.
        sealed: What arrived.
        key: The key that must have signed it, from our own register.
        tensor_digests: Name -> BLAKE3 digest (hex), computed here from what arrived.

    Raises:
        PeerError: if the signature is not the key's, the body is malformed, or the
            tensors are not the ones that were signed.
    """
    check_signature(kind, sealed, key)
    body = kind.parse(sealed.text)
    if not isinstance(body, kind):
        raise PeerError("A body is of the wrong kind.")
    if dict(tensor_digests) != body.tensors:
        raise PeerError("The tensors are not the ones that were signed.")
    return body


def check_signature(kind: type[Body], sealed: Sealed, key: PublicKey) -> None:
    """Raise PeerError unless the key has signed this text as this kind of body."""
    if not verify(key, _DOMAINS[kind] + sealed.text.encode(), sealed.signature):
        raise PeerError("The signature does not match the registered key.")
