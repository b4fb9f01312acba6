"""What a site says when it is ready: a signed text that the coordinator forwards as it is.

It binds a fresh key to one *place* of a run and to everything that the coordinator asked there
(:func:`context_of`), so that sites see that all of them were asked the same.
"""

import hashlib
import json
from dataclasses import dataclass

from pydantic import Field

from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import PrivateKey, fingerprint, read_public, sign, verify
from fgvc_core.protocol.messages import Body, Kind, Phase, Request, SignedText
from fgvc_core.protocol.ranges import RoundNumber

DOMAIN = b"fieldmark ready v1\n"
_CONTEXT = b"fieldmark ctx v1"

UNBOUND = ("site", "nonce", "known_head", "notice")
"""Fields of a request that may differ from site to site. Whatever is not listed here is bound."""


@dataclass(frozen=True, order=True)
class Place:
    """Where in a run a sum is taken; a site answers at most one set of sites there."""

    run: str
    round: int
    phase: str
    kind: str

    def __str__(self) -> str:
        phase = f", {self.phase}" if self.phase else ""
        return f"round {self.round} of run '{self.run}' ({self.kind}{phase})"


class Ready(Body):
    """A site has worked, and can send its part of a sum."""

    run: str = Field(max_length=64)
    round: RoundNumber
    phase: Phase
    kind: Kind
    ctx: str = Field(pattern=r"^[0-9a-f]{64}$")
    site: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    identity: str = Field(max_length=1000, description="The site's public key, in full.")
    key: str = Field(pattern=r"^[0-9a-f]{64}$", description="A fresh X25519 key.")

    @property
    def place(self) -> Place:
        """Where it is ready."""
        return Place(self.run, self.round, self.phase, self.kind)


def place_of(request: Request) -> Place:
    """The place of a request of the first trip."""
    return Place(request.run, request.round, request.phase, request.kind)


def context_of(request: Request, coordinator: str, class_names: tuple[str, ...]) -> str:
    """SHA-256 (hex) of everything that is asked; the same at every site that is asked the same.

    Args:
        request: A request of the first trip.
        coordinator: Fingerprint of the coordinator's key.
        class_names: As announced to this site.
    """
    values = request.model_dump(mode="json")
    for name in UNBOUND:
        values.pop(name)
    asked = [coordinator, request.recipe_digest, list(class_names), values]
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_CONTEXT + canonical.encode()).hexdigest()


def sign_ready(key: PrivateKey, ready: Ready) -> SignedText:
    """Sign a site's words."""
    text = ready.model_dump_json()
    return SignedText(text=text, signature=sign(key, DOMAIN + text.encode()).hex())


def read_ready(signed: SignedText) -> tuple[Ready, str]:
    """Verify a text by the identity in it; that identity is not known to be anybody's yet.

    Returns:
        What was said, and the fingerprint of who has signed it.

    Raises:
        PeerError: if it is malformed or the signature is not the identity's.
    """
    ready = Ready.parse(signed.text)
    if not isinstance(ready, Ready):
        raise PeerError("A text of a ready site is of another kind.")
    identity = read_public(ready.identity)
    if not verify(identity, DOMAIN + signed.text.encode(), bytes.fromhex(signed.signature)):
        raise PeerError(f"The ready text of site '{ready.site}' is not signed by its own key.")
    return ready, fingerprint(identity)
