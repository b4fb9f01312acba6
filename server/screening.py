"""Who sent a reply, and is it sound? Nothing of a reply is used before this.

Checked in order, cheapest and most decisive first: the runtime's error flag, size,
the signature against the registered key (never the claimed id), that it answers
*this* request (run, round, nonce, site, recipe), its code, its weight, its tensors'
names, shapes and dtypes, and that every value and figure can be.
"""

import math
from dataclasses import dataclass

from flwr.app import Message

from fgvc_core.errors import PeerError
from fgvc_core.protocol.envelope import unseal
from fgvc_core.protocol.keys import PublicKey
from fgvc_core.protocol.messages import Reply, Request
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, digest_all
from fgvc_core.wire.decode import Tensors, decode_update
from fgvc_core.wire.settings import WireSettings
from server.records import from_message
from server.strategies import SoundReply

MAX_EXAMPLES = 10_000_000
"""Largest number of training examples that a site is believed to have."""


_CARRYING = ("train", "release")
"""Kinds of requests whose answers carry tensors."""


class SiteRefusal(PeerError):
    """A reply that is sound and says no."""

    def __init__(self, what: str, reply: Reply) -> None:
        super().__init__(what)
        self.reply = reply


@dataclass(frozen=True)
class Screened:
    """A reply that is what it claims: its body, its update (if any), its bytes."""

    reply: Reply
    update: SoundReply | None
    nbytes: int


class Screening:
    """Screens the replies of one run.

    Args:
        specs: What the travelling tensors must be.
        keys: Site name -> its registered public key.
        max_update_mb: Largest update accepted, in MB.
        protected: Whether every reply has to state what it cost.
        wire: What updates travel as; None: as they are.
    """

    def __init__(
        self,
        specs: dict[str, TensorSpec],
        keys: dict[str, PublicKey],
        max_update_mb: float,
        protected: bool = False,
        wire: WireSettings | None = None,
    ) -> None:
        self._specs = specs
        self._keys = keys
        self._max_bytes = max_update_mb * 1e6
        self._protected = protected
        self._wire = wire or WireSettings()

    def screen(
        self,
        message: Message,
        request: Request,
        specs: dict[str, TensorSpec] | None = None,
        ledger_length: int = 0,
        reference: Tensors | None = None,
    ) -> Screened:
        """Check the answer to a request.

        Args:
            message: What arrived.
            request: What it has to answer.
            specs: What its tensors must be; by default the model's.
            ledger_length: How long we have seen this site's ledger before.
            reference: The model as it was sent, which an encoded update refers to.

        Raises:
            PeerError: with the reason, if the reply is to be refused.
        """
        sealed, packed = from_message(message)
        nbytes = reply_bytes(sealed.text, sealed.signature, packed)
        if nbytes > self._max_bytes:
            raise PeerError(
                f"The reply weighs {nbytes / 1e6:.1f} MB, more than "
                f"wire.max_update_mb = {self._max_bytes / 1e6:g}."
            )
        digests = digest_all(packed)
        reply = unseal(Reply, sealed, self._keys[request.site], digests)
        for field in ("kind", "run", "round", "site", "nonce", "recipe_digest"):
            if getattr(reply, field) != getattr(request, field):
                raise PeerError(f"The reply answers another request: its {field} differs.")
        if reply.ledger_length < ledger_length:
            raise PeerError(
                f"The site's ledger has {reply.ledger_length} entries, and had {ledger_length}: "
                "an old copy was put back."
            )
        if reply.code != "ok":
            raise SiteRefusal(f"The site answered '{reply.code}'. {reply.reason}".strip(), reply)
        _check_figures(reply)
        if self._protected and reply.privacy is None:
            raise PeerError("The run has differential privacy, and the reply does not state any.")
        if request.kind not in _CARRYING:
            return Screened(reply, None, nbytes)
        # What other kinds of replies carry is small, and travels as it is.
        encoded = reference if request.kind == "train" else None
        update = self._update(reply, packed, self._specs if specs is None else specs, encoded)
        return Screened(reply, update, nbytes)

    def _update(
        self,
        reply: Reply,
        packed: dict[str, PackedTensor],
        specs: dict[str, TensorSpec],
        reference: Tensors | None,
    ) -> SoundReply:
        if reply.kind == "train" and not 1 <= reply.examples <= MAX_EXAMPLES:
            raise PeerError(
                f"The site claims {reply.examples} training examples; 1 to {MAX_EXAMPLES} count."
            )
        tensors = decode_update(packed, specs, self._wire, reference or {})
        return SoundReply(reply.site, reply.examples, tensors)


def _check_figures(reply: Reply) -> None:
    if reply.loss is not None and not math.isfinite(reply.loss):
        raise PeerError("The site's training loss is not finite.")
    scores = reply.scores
    if scores is not None and not scores.correct <= scores.examples <= MAX_EXAMPLES:
        raise PeerError(
            f"The site claims {scores.correct} of {scores.examples} validation examples right; "
            f"at most all of them, and {MAX_EXAMPLES}, count."
        )


def reply_bytes(body: str, signature: bytes, packed: dict[str, PackedTensor]) -> int:
    """Bytes of a signed body and its tensors."""
    return len(body.encode()) + len(signature) + sum(len(t.data) for t in packed.values())
