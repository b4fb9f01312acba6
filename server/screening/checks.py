"""Checks that one reply must pass before any part of it is used: authenticity, then validity.

In order, the cheapest and most decisive first: the runtime's error flag, size, the signature
against the registered key (never the claimed id), that it answers *this* request (run, round,
nonce, site, recipe), its code, its weight, its tensors' names, shapes and dtypes, and that every
value and figure is possible.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import from_message
from fgvc_core.protocol.causes import refusal_in_words
from fgvc_core.protocol.keys import PublicKey, fingerprint
from fgvc_core.protocol.messages import Reply, Request, unseal
from fgvc_core.protocol.stages import Stage, stage_of
from fgvc_core.secure.masks import is_canonical, is_small_order
from fgvc_core.secure.ready import place_of, read_ready
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, digest_all, first_not_finite
from fgvc_core.wire.codec import decode_update
from fgvc_core.wire.settings import WireSettings
from fieldmark.server.ledger_memory import LedgerMemory
from fieldmark.server.screening.comparison import Measurements, UpdateHistory
from fieldmark.server.strategies import SoundReply, Tensors

MAX_EXAMPLES = 10_000_000
"""Most examples that a site can claim, whatever a recipe says."""


class SiteRefusal(PeerError):
    """An authentic reply in which a site refuses."""

    def __init__(self, what: str, reply: Reply) -> None:
        super().__init__(what)
        self.reply = reply


@dataclass(frozen=True)
class Screened:
    """A reply that passed: its body, its update (if any), its size in bytes.

    ``figures`` are the measurements by which its update was judged.
    """

    reply: Reply
    update: SoundReply | None
    nbytes: int
    figures: Measurements = field(default_factory=dict)


class Screening:
    """Checks the replies of one run.

    Args:
        specs: Names, shapes and dtypes of the exchanged tensors.
        keys: Site name -> its registered public key.
        max_update_mb: Largest update accepted, in MB.
        protected: Whether every reply has to state its privacy cost.
        max_weight: Most examples that a site may claim to have.
        history: Compares updates, and decodes those encoded relative to the sent model; None:
            neither.
        wire: Encoding of updates; None: unencoded.
        ledgers: Records every authentic reply; None: nothing is recorded.
        units: Site -> its declared units from the roll call; None: there was no roll call.
        claims: Site -> the first number of examples that counted in this run; a later claim above
            it weighs no more.
        context: Request -> what every ready site has to repeat of it; used with ``[secure]`` only.
    """

    def __init__(
        self,
        specs: dict[str, TensorSpec],
        keys: dict[str, PublicKey],
        max_update_mb: float,
        protected: bool = False,
        max_weight: int = MAX_EXAMPLES,
        history: UpdateHistory | None = None,
        wire: WireSettings | None = None,
        ledgers: LedgerMemory | None = None,
        units: Mapping[str, int] | None = None,
        claims: Mapping[str, int] | None = None,
        context: Callable[[Request], str] = lambda request: "",
    ) -> None:
        self._specs = specs
        self._keys = keys
        self._max_bytes = max_update_mb * 1e6
        self._protected = protected
        self._max_weight = max_weight
        self._history = history
        self._wire = wire or WireSettings()
        self._ledgers = ledgers
        self._units = units
        self._claims: Mapping[str, int] = {} if claims is None else claims
        self._context = context

    def screen(
        self,
        message: Message,
        request: Request,
        specs: dict[str, TensorSpec] | None = None,
        ledger_length: int = 0,
        digests: dict[str, str] | None = None,
    ) -> Screened:
        """Check the answer to a request.

        Args:
            message: What arrived.
            request: The request that it must answer.
            specs: Required tensors; by default the model's.
            ledger_length: Length of this site's ledger as last seen.
            digests: Digests of the message's tensors, if already computed.

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
        digests = digest_all(packed) if digests is None else digests
        reply = unseal(Reply, sealed, self._keys[request.site], digests)
        for name in ("kind", "run", "round", "site", "nonce", "recipe_digest"):
            if getattr(reply, name) != getattr(request, name):
                raise PeerError(f"The reply answers another request: its {name} differs.")
        if reply.ledger_length < ledger_length:
            raise PeerError(
                f"The site's ledger has {reply.ledger_length} entries, and had {ledger_length}: "
                "an old copy was put back."
            )
        if self._ledgers is not None and self._ledgers.remembers:
            self._ledgers.saw(reply, sealed)
        if reply.code != "ok":
            raise SiteRefusal(f"The site {refusal_in_words(reply)}", reply)
        self._check_figures(reply)
        if self._protected and reply.privacy is None:
            raise PeerError("The run has differential privacy, and the reply does not state any.")
        stage = stage_of(request)
        if stage.carries == "ready":
            self._check_ready(reply, request)
        if stage.carries in ("nothing", "ready"):
            return Screened(reply, None, nbytes)
        update = self._update(stage, reply, packed, self._specs if specs is None else specs)
        return Screened(reply, update, nbytes, self._judge(stage, update))

    def _update(
        self,
        stage: Stage,
        reply: Reply,
        packed: dict[str, PackedTensor],
        specs: dict[str, TensorSpec],
    ) -> SoundReply:
        is_update = stage.carries == "update"
        least = 1 if is_update else 0
        if (is_update or not reply.privacy) and not least <= reply.examples <= self._max_weight:
            raise PeerError(
                f"The site claims {reply.examples} training examples; {least} to "
                f"{self._max_weight} count (federation.max_weight)."
            )
        declared = None if self._units is None else self._units.get(reply.site)
        if is_update and reply.privacy and declared and reply.examples != declared:
            raise PeerError(
                f"The site weighs its update by {reply.examples} units, and declared {declared}."
            )
        if not is_update and reply.privacy and reply.examples:
            # A release is weighted by the declared units, so a claim beside it is an error.
            raise PeerError(
                f"The site claims {reply.examples} units beside a release, which states none."
            )
        # Other kinds of replies are small and sent unencoded.
        encoded = self._history is not None and stage.encoded
        sent: Tensors = self._history.sent if self._history and encoded else {}
        weight = reply.examples
        if is_update:
            weight = min(weight, self._claims.get(reply.site, weight))
        return SoundReply(reply.site, weight, decode_update(packed, specs, self._wire, sent))

    def _check_ready(self, reply: Reply, request: Request) -> None:
        """Check what would make every other site of a masked sum refuse it."""
        if reply.ready is None:
            raise PeerError("The site does not say that it is ready.")
        ready, signer = read_ready(reply.ready)
        if signer != fingerprint(self._keys[request.site]) or ready.site != request.site:
            raise PeerError("The ready text is not the site's own.")
        if ready.place != place_of(request) or ready.ctx != self._context(request):
            raise PeerError("The ready text answers another request.")
        if not is_canonical(ready.key):
            raise PeerError("The fresh key of the ready text is not in its one encoding.")
        if is_small_order(ready.key):
            raise PeerError("The fresh key of the ready text is a point of small order.")

    def _judge(self, stage: Stage, update: SoundReply) -> Measurements:
        if self._history is not None and stage.carries == "update":
            return self._history.judge(update)
        if stage.carries == "masked":
            # Looks like chance, whatever is beneath.
            return {}
        broken = first_not_finite(update.tensors)
        if broken is not None:
            raise PeerError(f"The update's tensor '{broken}' is not finite.")
        return {}

    def _check_figures(self, reply: Reply) -> None:
        if reply.loss is not None and not math.isfinite(reply.loss):
            raise PeerError("The site's training loss is not finite.")
        for scores in (reply.scores, reply.personal):
            if scores is not None and not scores.correct <= scores.examples <= self._max_weight:
                raise PeerError(
                    f"The site claims {scores.correct} of {scores.examples} validation examples "
                    f"right; at most all of them, and {self._max_weight}, count."
                )


def reply_bytes(body: str, signature: bytes, packed: dict[str, PackedTensor]) -> int:
    """Bytes of a signed body and its tensors."""
    return len(body.encode()) + len(signature) + sum(len(t.data) for t in packed.values())
