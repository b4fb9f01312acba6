"""The exchange of signed requests and replies with the sites, and the model's encoding.

A reply is matched by the id of the message that it answers, which is stored with the site that it
was sent to; what the reply claims about its sender is never used.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fgvc_core.errors import ConfigurationError
from fgvc_core.flower.records import from_array_record, is_large, take_tensors, to_array_record
from fgvc_core.protocol.messages import (
    CohortMember,
    Kind,
    Phase,
    Request,
    SignedText,
    new_nonce,
)
from fgvc_core.protocol.stages import stage_of
from fgvc_core.secure.part import NAME
from fgvc_core.wire.arrays import TensorSpec, digest_all, unpack_all
from fgvc_core.wire.codec import encode_model, model_parts, packed_bytes, read_model, update_parts
from fgvc_core.wire.settings import WireSettings
from fgvc_core.words import counted
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.prefetch import LookAhead
from fieldmark.server.sites.roll_call import Attendance
from fieldmark.server.strategies import Tensors

ROUNDS_LATE = 2
"""Rounds after which a late reply is no longer looked for."""
GRACE_FOR_PIECES_S = 1.0
"""Seconds after the deadline in which announced replies may become complete, for all replies of
a round together. What else a round does, from its first request on, has to fit into the other four
of the five seconds in which it has to close."""
UNFINISHED = f"The reply was announced, and was not complete {ROUNDS_LATE} rounds later."
BESIDE_TENSORS = 16_000_000
"""Most bytes of a reply in addition to its tensors."""


@dataclass(frozen=True)
class Answer:
    """A site's answer to a request.

    Attributes:
        request: The request.
        message: The reply; None if none came in time, or if it must not be read.
        seconds: From the sending of the requests to the reading of this answer.
        refusal: Why it must not be read.
        digests: Digests of the reply's tensors, if already computed.
        stalled: The site announced a reply and sent none of it.
    """

    request: Request
    message: Message | None
    seconds: float
    refusal: str = ""
    digests: dict[str, str] | None = None
    stalled: bool = False


class Exchange(Attendance):
    """Sends signed messages to the sites that are present and receives their replies."""

    def __init__(self, grid: Grid, home: CoordinatorHome, run: str, events: EventLog) -> None:
        super().__init__(grid, home, run, events)
        self._late: dict[str, Request] = {}
        self._limit_reply(home.recipe.wire.max_update_mb * 1e6 + BESIDE_TENSORS)
        self._digested: tuple[ArrayRecord | None, dict[str, str]] = (None, {})

    def compose(
        self,
        kind: Kind,
        round_: int,
        site: str,
        arrays: ArrayRecord,
        proximal_mu: float = 0.0,
        phase: Phase = "",
        known_head: str = "",
        base_round: int = 0,
        notice: str = "",
        cohort: tuple[CohortMember, ...] = (),
        ready: tuple[SignedText, ...] = (),
        class_shares: tuple[float, ...] = (),
    ) -> tuple[Request, Message]:
        """A signed request to a site, with tensors."""
        request = Request(
            kind=kind,
            run=self._run,
            round=round_,
            site=site,
            nonce=new_nonce(),
            recipe_digest=self._home.recipe.digest,
            proximal_mu=proximal_mu,
            phase=phase,
            known_head=known_head,
            base_round=base_round,
            notice=notice,
            tensors=self.digests(arrays),
            cohort=cohort,
            ready=ready,
            class_shares=class_shares,
        )
        if self.ledgers.remembers:
            self.ledgers.asked(site, self._run, request.nonce)
        return request, self._message(request, self.nodes[site], arrays)

    def ask(
        self, requests: Iterable[tuple[Request, Message]], deadline_s: float
    ) -> Iterator[Answer]:
        """Send requests, then yield the answers one at a time in the order of the requests.

        The next answer is fetched when it is asked for; after a large one it is fetched and hashed
        while that one is processed, so two are in memory. Not so the parts of a masked sum: adding
        one is quick, and only one is in memory. The deadline counts from the sending of
        the last request and applies to arrival: a reply that arrived in time counts however late it
        is read. Missing replies are remembered, and :meth:`late` may find them.
        """
        sent = []
        for request, message in requests:
            (message_id,) = self._grid.push_messages([message])
            sent.append((message_id, request, message))
        started, began = self._clock(), time.monotonic()
        with ExitStack() as stack:
            ahead: LookAhead | None = None
            following = [message_id for message_id, _, _ in sent[1:]]
            for (message_id, request, message), then in zip_longest(sent, following):
                fetched = self._pull(
                    message_id, started + deadline_s, request.site, ahead, GRACE_FOR_PIECES_S
                )
                take_tensors(message)
                seconds = time.monotonic() - began
                self._read_allow_list()
                if request.site not in self.keys:
                    gone = f"Site '{request.site}' was removed from the allow-list."
                    yield Answer(request, None, seconds, gone)
                    continue
                if fetched is None:
                    yield self._missing(request, message_id, seconds)
                    continue
                masked = stage_of(request).carries == "masked"
                if then is not None and not masked and is_large(fetched.message):
                    if ahead is None:
                        ahead = LookAhead(self._grid.pull_messages)
                        stack.enter_context(closing(ahead))
                    ahead.look(then)
                yield Answer(request, fetched.message, seconds, digests=fetched.digests)
                # Free the memory before the next one is fetched.
                fetched = None

    def _missing(self, request: Request, message_id: str, seconds: float) -> Answer:
        """The answer of a site whose reply is missing or incomplete at the deadline."""
        arriving = self._arriving(message_id)
        if stage_of(request).late_allowed:
            self._late[message_id] = request
        else:
            self._forget(message_id)
        if arriving is None:
            return Answer(request, None, seconds)
        come, pieces = arriving
        said = f"The reply was announced; {come} of {pieces} pieces had come by the deadline."
        # Stalled only if no piece came: a reply over a slow connection may still be late.
        return Answer(request, None, seconds, said, stalled=come == 0)

    def late(self, round_: int) -> Iterator[Answer]:
        """Replies to earlier requests that have arrived since, one at a time.

        Args:
            round_: The round that is about to begin.
        """
        for message_id, request in list(self._late.items()):
            if round_ - request.round > ROUNDS_LATE or request.site not in self.keys:
                del self._late[message_id]
                if self._arriving(message_id) is not None and request.site in self.keys:
                    yield Answer(request, None, 0.0, UNFINISHED, stalled=True)
                self._forget(message_id)
                continue
            for message in self._grid.pull_messages([message_id]):
                if message.metadata.reply_to_message_id == message_id:
                    del self._late[message_id]
                    yield Answer(request, message, 0.0)

    def digests(self, arrays: ArrayRecord) -> dict[str, str]:
        """Name -> digest (hex) of each tensor of a model."""
        # The same record goes to every site of a round, so it is hashed once.
        if self._digested[0] is not arrays:
            digests = digest_all(from_array_record(arrays))
            self._digested = arrays, digests
        return self._digested[1]


class Outgoing:
    """Encodes the coordinator's model for the sites.

    The same model goes to every site of a round, so it is encoded and decoded once.

    Args:
        specs: The model's tensors.
        wire: ``[wire]``.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], wire: WireSettings) -> None:
        self._specs = specs
        self._wire = wire
        self._sent: tuple[ArrayRecord | None, ArrayRecord] = (None, ArrayRecord())
        self._read: tuple[ArrayRecord | None, Tensors] = (None, {})

    def __call__(self, arrays: ArrayRecord) -> ArrayRecord:
        """The encoded model; with float32 encoding, the same record."""
        if self._wire.down == "float32":
            return arrays
        if self._sent[0] is not arrays:
            tensors = unpack_all(from_array_record(arrays), self._specs)
            self._sent = arrays, to_array_record(encode_model(tensors, self._wire))
        return self._sent[1]

    def received(self, sent: ArrayRecord) -> Tensors:
        """The model as the sites decode it, which their updates are relative to."""
        if self._read[0] is not sent:
            self._read = sent, read_model(from_array_record(sent), self._specs, self._wire)
        return self._read[1]


def check_round_weight(
    specs: Mapping[str, TensorSpec], wire: WireSettings, cohort: int, part: TensorSpec | None = None
) -> None:
    """Refuse a run whose messages are larger than the recipe allows, before its first round.

    Args:
        specs: The model's tensors.
        wire: ``[wire]``.
        cohort: Sites in a round.
        part: What a site sends instead of its update, of a masked sum.

    Raises:
        ConfigurationError: with the size of a message or a round.
    """
    sent = update_parts(specs, wire, specs) if part is None else {NAME: part}
    up = packed_bytes(sent) / 1e6
    down = packed_bytes(model_parts(specs, wire)) / 1e6
    for name, weight in (("update", up), ("model", down)):
        if weight > wire.max_update_mb:
            raise ConfigurationError(
                f"The {name} weighs {weight:.2f} MB, more than "
                f"wire.max_update_mb = {wire.max_update_mb:g}.",
                why="No reply could be accepted.",
                remedy="Train less of the model ([model] train), send it in fewer bytes ([wire]), "
                "or raise wire.max_update_mb.",
            )
    total = cohort * (up + down)
    if 0 < wire.max_round_mb < total:
        raise ConfigurationError(
            f"A round of {counted(cohort, 'site')} weighs {total:.2f} MB ({down:.2f} MB to "
            f"each, {up:.2f} MB "
            f"from each), more than wire.max_round_mb = {wire.max_round_mb:g}.",
            why="Nothing was sent.",
            remedy="Send fewer bytes (wire.precision, wire.top_k, wire.down), ask fewer sites "
            "(federation.fraction), or raise wire.max_round_mb.",
        )
