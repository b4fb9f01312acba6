"""Messages to sites and back: signed requests, and replies bound to them.

A reply is found by the id of the message that it answers, which we remember with the
site that we sent it to; what the reply claims about its sender is never used.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fgvc_core.flower.records import from_array_record, is_large, take_tensors
from fgvc_core.protocol.messages import Kind, Phase, Request, new_nonce
from fgvc_core.wire.arrays import digest_all
from fieldmark.server.home import CoordinatorHome
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.prefetch import LookAhead
from fieldmark.server.sites.roll_call import Attendance

ROUNDS_LATE = 2
"""A reply that is later than this is not looked for any more."""
GRACE_FOR_PIECES_S = 3.0
"""How long, after the deadline, replies that were announced have to become complete, in seconds;
one such time for all replies of a round."""
UNFINISHED = f"The reply was announced, and was not complete {ROUNDS_LATE} rounds later."
BESIDE_TENSORS = 16_000_000
"""Bytes that a reply may weigh beside its tensors."""


@dataclass(frozen=True)
class Answer:
    """A site's answer to a request; ``message`` is None where none came in time, or where it is
    not to be read for the reason that ``refusal`` names; ``digests`` are those of its tensors
    where they were computed from it already; ``stalled``: the site has announced a reply and sent
    nothing of it, which is its own fault."""

    request: Request
    message: Message | None
    seconds: float
    refusal: str = ""
    digests: dict[str, str] | None = None
    stalled: bool = False


class Exchange(Attendance):
    """Carries signed messages between the coordinator and the named sites that are present."""

    def __init__(self, grid: Grid, home: CoordinatorHome, run: str, events: EventLog) -> None:
        super().__init__(grid, home, run, events)
        self._late: dict[str, Request] = {}
        self._forget: Callable[[str], None] = getattr(grid, "forget", lambda _: None)
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
    ) -> tuple[Request, Message]:
        """A signed request to a site with the tensors beside it."""
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
        )
        self.ledgers.asked(site, self._run, request.nonce)
        return request, self._message(request, self.nodes[site], arrays)

    def ask(
        self, requests: Iterable[tuple[Request, Message]], deadline_s: float
    ) -> Iterator[Answer]:
        """Send requests, then yield the answers one at a time in the order of the requests.

        Answers are held one at a time, and the next is fetched when it is asked for; behind a
        large one it is fetched and hashed while that one is read, so that two are held. The
        deadline counts from the sending of the last request, and it is arrival that counts:
        what was there in time is taken however late it is read. What was not is remembered,
        and may be found by :meth:`late`.
        """
        sent = []
        for request, message in requests:
            (message_id,) = self._grid.push_messages([message])
            sent.append((message_id, request, message))
        started, began = self._clock(), time.monotonic()
        with closing(LookAhead(self._grid.pull_messages)) as ahead:
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
                if then is not None and is_large(fetched.message):
                    ahead.look(then)
                yield Answer(request, fetched.message, seconds, digests=fetched.digests)

    def _missing(self, request: Request, message_id: str, seconds: float) -> Answer:
        """What is said of a reply that is not there at the deadline."""
        arriving = self._arriving(message_id)
        if request.kind == "train" and not request.phase:
            self._late[message_id] = request
        else:
            self._forget(message_id)
        if arriving is None:
            return Answer(request, None, seconds)
        come, pieces = arriving
        said = f"The reply was announced; {come} of {pieces} pieces had come by the deadline."
        # A slow line brings one piece after the other: its reply may still come late.
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
        # The same record goes to every site of a round: hash it once.
        if self._digested[0] is not arrays:
            digests = digest_all(from_array_record(arrays))
            self._digested = arrays, digests
        return self._digested[1]
